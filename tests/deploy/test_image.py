"""The Dockerfile: what it copies is there, what it installs is pinned, and what it makes of a clean Python runs the jobs."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conftest import ROOT, free_of_ray

DOCKERFILE = (ROOT / "Dockerfile").read_text()
# A backslash at the end of a line joins it to the next; comments go first.
LINES = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    if line
]


def instructions(name: str) -> list[str]:
    return [rest for instruction, rest in LINES if instruction == name]


def defaults() -> dict[str, str]:
    """The build arguments."""
    return dict(argument.split("=", 1) for argument in instructions("ARG"))


def copied() -> list[str]:
    """What comes from the checkout."""
    words = [shlex.split(line) for line in instructions("COPY") if not line.startswith("--from")]
    return [source for *sources, _ in words for source in sources]


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps it from the build: the last pattern that fits decides."""
    out = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            wanted = pattern.removeprefix("!")
            parts = [name, *(str(parent) for parent in Path(name).parents)]
            # "**/" is any number of folders, none included.
            if any(fnmatch.fnmatch(part, each) for part in parts for each in (wanted, wanted.removeprefix("**/"))):
                out = not pattern.startswith("!")
    return out


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    assert {"cataloger", "jobs", "constraints.txt"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert not ignored("cataloger/infra/templates/night.html")
    sent = {each.name for each in ROOT.iterdir() if not ignored(each.name)}
    assert sent == set(copied()), "no data, no environment, no key"
    assert ignored("cataloger/__pycache__/config.cpython-311.pyc")


def test_the_base_image_has_a_version_and_is_that_of_both_stages() -> None:
    assert [line.split()[0] for line in instructions("FROM")] == ["${BASE}", "${BASE}"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", defaults()["BASE"])
    assert "latest" not in DOCKERFILE
    assert "@sha256:" in DOCKERFILE, "how to name a digest"


def test_everything_that_is_installed_is_pinned_and_the_library_is_the_wheel() -> None:
    build, *installs = [line for line in instructions("RUN") if "pip" in line]
    assert build.startswith("pip wheel")
    assert "--no-deps" in build
    for line in installs:
        assert "--constraint /opt/cataloger/constraints.txt" in line
    assert not [line for line in instructions("COPY") if line.split()[0] == "cataloger" and "/opt" in line]
    # The stage with the checkout is not the one that is kept: of it, the wheel comes along.
    kept = DOCKERFILE.split("FROM ${BASE}\n")[1]
    assert re.findall(r"^COPY (.+)$", kept, re.MULTILINE) == [
        "constraints.txt /opt/cataloger/constraints.txt",
        "--from=wheel /wheels /wheels",
        "jobs /opt/cataloger/jobs",
    ]


def test_the_extras_are_the_librarys() -> None:
    known = set(
        re.findall(
            r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dependencies]")[1], re.MULTILINE
        )
    )
    for extras in [defaults()["EXTRAS"], *re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE)]:
        assert set(extras.split(",")) <= known


def test_it_does_not_run_as_root() -> None:
    assert instructions("USER") == ["10001:10001"]
    after = [instruction for instruction, _ in LINES[[name for name, _ in LINES].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after


def in_the_image(line: str, root: Path, python: Path) -> str:
    """A line of the Dockerfile for a shell here: its folders lie below `root`, and its Python is this one."""
    line = re.sub(r"(?<![\w.-])(/opt/cataloger|/wheels)", lambda found: f"{root}{found[1]}", line)
    return re.sub(r"^(pip|python)\b", lambda found: f"{python} -m pip" if found[1] == "pip" else str(python), line)


def bare(environment: Path) -> Path:
    """The Python of a new environment that borrows all packages of this one, except our own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    borrowed = environment / "borrowed"
    borrowed.mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if "cataloger" not in each.name:
            (borrowed / each.name).symlink_to(each)
    (packages,) = environment.glob("lib/*/site-packages")
    (packages / "borrowed.pth").write_text(str(borrowed))
    return environment / "bin" / "python"


@pytest.mark.slow
def test_its_lines_make_an_environment_in_which_the_jobs_run(
    working_folder: Path, bundle: Path, labelled: Path
) -> None:
    """Without a network: what constraints.txt pins is borrowed from this environment, and pip finds that nothing is missing."""
    root, source, environment = (working_folder / name for name in ("image", "source", "environment"))
    source.mkdir()
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    (root / "opt" / "cataloger").mkdir(parents=True)
    shutil.copy(source / "constraints.txt", root / "opt" / "cataloger")
    shutil.copytree(source / "jobs", root / "opt" / "cataloger" / "jobs")
    python = bare(environment)
    (packages,) = environment.glob("lib/*/site-packages")
    variables = {name: value for name, value in free_of_ray().items() if name != "PYTHONPATH"}
    offline = {**variables, **defaults(), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for line in instructions("RUN"):
        if line.startswith("useradd"):
            continue
        # Otherwise pip would fetch setuptools once more.
        command = in_the_image(line.replace("pip wheel", "pip wheel --no-build-isolation"), root, python)
        done = subprocess.run(
            ["sh", "-euc", command], env=offline, cwd=source, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (packages / "cataloger" / "__init__.py").exists(), "pip installed the wheel"

    (entry,) = (json.loads(line) for line in instructions("ENTRYPOINT"))
    (helped,) = (json.loads(line) for line in instructions("CMD"))
    shown = started(entry, helped, root, python, variables, working_folder)
    assert "--catalog STR" in shown
    label = "/opt/cataloger/jobs/label.py"
    pq.write_table(pq.read_table(labelled).slice(0, 100), "catalog.parquet")
    flags = ["--catalog", "catalog.parquet", "--output", "labels", "--model", str(bundle), "--experiment", "image"]
    started(entry, [label, *flags], root, python, variables, working_folder)
    pointer = json.loads(Path("labels/_latest.json").read_text())
    assert len(pq.read_table(f"labels/{pointer['path']}", partitioning=None)) == 100


def started(
    entry: list[str], arguments: list[str], root: Path, python: Path, variables: dict[str, str], folder: Path
) -> str:
    """What a container prints that is started with these arguments."""
    command = in_the_image(shlex.join([*entry, *arguments]), root, python)
    program = "import cataloger; print(cataloger.__file__)"
    where = subprocess.run(
        [python, "-c", program], env=variables, cwd=folder, capture_output=True, text=True, check=True
    )
    assert Path(where.stdout.strip()).is_relative_to(python.parents[1]), "the wheel's library, not the checkout's"
    done = subprocess.run(shlex.split(command), env=variables, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
