"""What `pip install .` brings: the wheel holds the whole library, and the library works without its checkout."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from conftest import ROOT, free_of_ray

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
import cataloger
from cataloger.config import LabelConfig, SampleConfig, TrainConfig
from cataloger.data import sample
from cataloger.infra import runtime

sample.generate(SampleConfig(rows=100, output="labelled", labelled=True))
sample.generate(SampleConfig(rows=100, output="catalog", seed=1))
with runtime.session():
    from cataloger.labeling.job import label
    from cataloger.training.job import train

    trained = train(
        TrainConfig(catalog="labelled", base_model=sys.argv[1], epochs=1, max_tokens=16, experiment="wheel", model_name="wheel")
    )
    labels = label(
        LabelConfig(catalog="catalog", output="labels", model=(trained.model_uri,), experiment="wheel", max_reject_fraction=1)
    )
print(json.dumps({"library": cataloger.__file__, "run": labels.run, "rows": labels.rows}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools packs whatever an earlier build left in `build/` as well."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "cataloger", source / "cataloger", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", target, source)
    (built,) = target.glob("*.whl")
    return built


def pip(command: str, *arguments: object) -> None:
    line = [sys.executable, "-m", "pip", "--quiet", command, "--no-deps", "--no-index", *map(str, arguments)]
    subprocess.run(line, check=True)


def test_the_wheel_holds_every_file_of_the_library_and_says_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        (metadata,) = (message_from_bytes(packed.read(name)) for name in names if name.endswith(".dist-info/METADATA"))
    library = {str(file.relative_to(ROOT)) for file in (ROOT / "cataloger").rglob("*") if file.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == {
        name for name in library if "__pycache__" not in name
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"openvino", "lora", "spark"} <= set(metadata.get_all("Provides-Extra"))


def test_the_installed_library_trains_and_labels(wheel: Path, working_folder: Path, tiny_model: Path) -> None:
    environment = working_folder / "installed"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/*/site-packages")
    # The libraries are borrowed from this environment. What its own .pth files name, such as the checkout, is not followed.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip("install", "--target", packages, wheel)
    variables = {name: value for name, value in free_of_ray().items() if name != "PYTHONPATH"}
    command = [environment / "bin" / "python", "-c", PROGRAM, tiny_model]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=working_folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["library"]).is_relative_to(packages)
    assert result["rows"] == 100
    assert (working_folder / "labels" / f"run={result['run']}" / "_report.html").exists()
