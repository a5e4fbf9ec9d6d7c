"""Promises on S3: retries are bounded, what cannot work says so at once, and no fault leaves a half-written result."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from aiohttp import web

from cataloger.data.catalog import open_catalog
from cataloger.data.units import plan_units
from cataloger.errors import ConflictError, StorageError
from cataloger.infra import s3 as clients
from cataloger.infra.storage import Location, locate
from conftest import ROOT, free_of_ray, published, shared_data, upload
from drawn import noise
from servers import Fault, fault_proxy, kill_with_descendants

pytestmark = [pytest.mark.faults, pytest.mark.s3]
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def through(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Fault], str]]:
    """`through(fault)` puts a failing proxy between this test and the S3 server; its address."""
    server = os.environ["AWS_ENDPOINT_URL"]
    with contextlib.ExitStack() as stack:

        def start(fault: Fault) -> str:
            address = stack.enter_context(fault_proxy(server, fault))
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            s3fs.S3FileSystem.clear_instance_cache()
            return address

        yield start
    s3fs.S3FileSystem.clear_instance_cache()


def read_published(output: str) -> tuple[dict[str, object], int]:
    pointer = json.loads((locate(output) / "_latest.json").read())
    manifest = json.loads((locate(output) / pointer["manifest"]).read())
    folder = locate(output) / pointer["path"]
    return manifest, len(pq.read_table(folder.path, filesystem=folder.filesystem, columns=["id"]))


def test_every_third_put_refused_or_reset_costs_nothing_but_time(
    s3: str, through: Callable[[Fault], str], labelled: Path, bundle: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(labelled, f"{s3}/third/catalog")
    puts, failed = count(1), []

    def fault(request: web.Request) -> int | str | None:
        if request.method != "PUT" or (number := next(puts)) % 3:
            return None
        failed.append(number)
        return 503 if number % 2 else "reset"

    address = through(fault)
    command = [sys.executable, str(ROOT / "jobs" / "label.py"), "--catalog", f"{s3}/third/catalog"]
    command += ["--output", f"{s3}/third/labels", "--model", str(bundle)]
    environment = free_of_ray(AWS_ENDPOINT_URL=address)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert failed, "nothing failed, so nothing was shown"
    manifest, rows = read_published(f"{s3}/third/labels")
    assert manifest["rows"] == 1_500 == rows
    code, _, err = job("verify", "--output", f"{s3}/third/labels")
    assert code == 0, err
    assert "must-not-leak" not in done.stdout + done.stderr + json.dumps(manifest)


def test_a_folder_is_listed_and_removed_a_thousand_objects_at_a_time(s3: str, through: Callable[[Fault], str]) -> None:
    folder, one = locate(f"{s3}/many/run=a"), locate(f"{s3}/many/run=b")
    client = clients.for_writing()
    client.pipe({f"{folder.path}/part-{number:04d}": b"" for number in range(1_050)})
    (one / "part-0000").write(b"x")
    asked: list[tuple[str, bool]] = []

    def count_requests(request: web.Request) -> None:
        asked.append((request.method, "list-type" in request.query))

    through(count_requests)
    folder, output = locate(folder.uri), locate(f"{s3}/many")
    assert len(folder.files()) == 1_050
    assert asked.count(("GET", True)) == 2
    asked.clear()
    assert output.folders() == ["run=a", "run=b"]
    assert len(asked) == 1, "not one for each thousand of what is in them"
    asked.clear()
    folder.delete()
    assert [method for method, _ in asked].count("POST") == 2
    assert len(asked) < 10, asked
    assert output.folders() == ["run=b"]


def test_a_server_that_dies_while_completing_a_multipart_upload_leaves_nothing_that_a_reader_sees(
    s3: str, through: Callable[[Fault], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "ATTEMPTS", 2)  # six would take a minute
    dead = []

    def fault(request: web.Request) -> int | str | None:
        if request.method == "POST" and "uploadId" in request.query:
            dead.append(request.path)
        return "reset" if dead else None

    through(fault)
    large = locate(f"{s3}/multipart/model.safetensors")
    with pytest.raises(StorageError, match="multipart/model.safetensors: cannot be written: the S3 endpoint does not"):
        large.write(bytes(101 << 20))
    through(lambda _: None)
    large = locate(f"{s3}/multipart/model.safetensors")
    assert not large.exists()

    def unfinished() -> list[object]:
        answer = clients.for_writing().call_s3("list_multipart_uploads", Bucket="shop", Prefix="multipart")
        return list(answer.get("Uploads") or [])

    assert unfinished()
    locate(f"{s3}/multi").abort_uploads()
    assert unfinished(), "those of a folder whose name begins alike are somebody else's"
    large.parent.abort_uploads()
    assert not unfinished()


def test_a_conditional_write_whose_answer_is_lost_was_written(s3: str, through: Callable[[Fault], str]) -> None:
    lost = []

    def fault(request: web.Request) -> int | str | None:
        if request.method == "PUT" and len(lost) < 2:
            lost.append(request.path)
            return "lose"
        return None

    through(fault)
    pointer = locate(f"{s3}/lost/_latest.json")
    pointer.replace(b"one", None)
    assert lost, "no answer was lost"
    assert pointer.read() == b"one"
    version = pointer.version()
    pointer.replace(b"two", version)
    for expected in (None, version):
        with pytest.raises(ConflictError):
            pointer.replace(b"three", expected)
    assert pointer.read() == b"two"


def test_a_conditional_write_is_one_put_however_large(s3: str) -> None:
    large = locate(f"{s3}/large/part-00000.parquet")
    large.write(b"one")
    with pytest.raises(ConflictError):
        large.replace(bytes(101 << 20), None)
    assert large.read() == b"one"


def answering(status: int, times: int, puts: list[str]) -> Fault:
    """The first PUTs are answered so, and without a word of explanation."""

    def fault(request: web.Request) -> int | str | None:
        if request.method != "PUT":
            return None
        puts.append(request.path)
        return status if len(puts) <= times else None

    return fault


@pytest.mark.parametrize("status", [412, 404])
def test_a_conditional_write_that_is_refused_is_a_conflict_whatever_the_words(
    s3: str, through: Callable[[Fault], str], status: int
) -> None:
    pointer = locate(f"{s3}/refused-{status}/_latest.json")
    pointer.write(b"one")
    version, puts = pointer.version(), []  # type: ignore[var-annotated]
    through(answering(status, 9, puts))
    with pytest.raises(ConflictError):
        locate(pointer.uri).replace(b"two", version)
    assert len(puts) == 1, "what was refused is not tried again"


def test_a_conditional_write_that_meets_another_one_is_tried_again(s3: str, through: Callable[[Fault], str]) -> None:
    puts: list[str] = []
    through(answering(409, 2, puts))
    pointer = locate(f"{s3}/again/_latest.json")
    pointer.replace(b"one", None)
    assert (pointer.read(), len(puts)) == (b"one", 3)


def test_a_conditional_write_that_meets_others_again_and_again_looks_what_stands_there(
    s3: str, through: Callable[[Fault], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "ATTEMPTS", 2)
    puts: list[str] = []
    pointer = locate(f"{s3}/busy/_latest.json")
    pointer.write(b"one")
    version = pointer.version()
    pointer.write(b"two")
    through(answering(409, 99, puts))
    pointer = locate(pointer.uri)
    pointer.replace(b"two", version)  # it was written after all
    with pytest.raises(ConflictError):
        pointer.replace(b"three", version)
    # Nothing has changed there, so it is no conflict: to look and try again might never end.
    for free, expected in ((pointer, pointer.version()), (pointer.parent / "new.json", None)):
        with pytest.raises(StorageError, match="cannot be written: S3 is busy with other writes there") as caught:
            free.replace(b"three", expected)
        assert not isinstance(caught.value, ConflictError)
    assert len(puts) == 4 * 2


@pytest.mark.parametrize(
    ("flags", "environment", "answer", "sentence"),
    [
        (("s3://shop/c", "labels"), {"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "S3 refuses the credentials"),
        (("c", "s3://shop/l"), {"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "S3 refuses the credentials"),
        (("c", "s3://nowhere/l"), {}, None, "there is no such bucket"),
        (("s3://nowhere/c", "labels"), {}, None, "there is no such bucket"),
        (("s3://shop/c", "labels"), {}, 301, "the bucket lies in another region; set AWS_REGION"),
        (("c", "s3://shop/l"), {}, 301, "the bucket lies in another region; set AWS_REGION"),
    ],
)
def test_what_cannot_work_is_not_retried_and_says_what_to_do(
    flags: tuple[str, str],
    environment: dict[str, str],
    answer: int | None,
    sentence: str,
    through: Callable[[Fault], str],
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[..., Path],
    bundle: Path,
    job: Job,
) -> None:
    requests = []

    def fault(request: web.Request) -> int | str | None:
        requests.append(request.path)
        return answer

    through(fault)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    write("c/part.parquet", id=[1], title=["tea"])
    catalog, output = flags
    code, _, err = job("label", "--catalog", catalog, "--output", output, "--model", bundle, "--text-columns", "title")
    assert code == 2
    assert sentence in err
    assert "wrong" not in err
    assert "Traceback" not in err
    assert len(requests) <= 4, "it was tried again and again"


def test_credentials_in_a_uri_are_refused_and_not_repeated(job: Job, bundle: Path) -> None:
    code, _, err = job("label", "--catalog", "s3://key:hush@shop/c", "--output", "labels", "--model", bundle)
    assert code == 2
    assert "credentials do not belong in a URI" in err
    assert "hush" not in err


@pytest.mark.slow
def test_a_driver_killed_half_way_on_s3_is_resumed_without_doing_a_unit_twice(
    s3: str, bundle: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter of scale_mix, from and to S3."""
    for part in sorted(shared_data("scale_mix").glob("*.parquet"))[::4]:
        (locate(f"{s3}/scale/catalog") / part.name).write(part.read_bytes())
    command = [sys.executable, str(ROOT / "jobs" / "label.py"), "--catalog", f"{s3}/scale/catalog"]
    command += ["--output", f"{s3}/scale/labels", "--model", str(bundle)]
    output = locate(f"{s3}/scale/labels")

    def parts() -> list[Location]:
        return [output / info.path.removeprefix(output.path + "/") for info in output.files() if "/part-" in info.path]

    total, unit_rows = 58_557, 8_192
    units = len(plan_units(open_catalog(f"{s3}/scale/catalog", "id", ["title"])))
    assert units >= 6
    driver = subprocess.Popen(command, env=free_of_ray(), start_new_session=True, stderr=subprocess.DEVNULL)
    while len(parts()) < units // 2 and driver.poll() is None:
        time.sleep(0.2)
    kill_with_descendants(driver)
    finished = len(parts())
    assert 0 < finished < units
    done = subprocess.run(command, env=free_of_ray(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    forwarded = int(re.search(r"through the model\s*│\s*([\d,]+)", done.stdout)[1].replace(",", ""))  # type: ignore[index]
    with capsys.disabled():
        print(f"\n{finished} of {units} units were finished; the second run forwarded {forwarded:,} texts")
    assert forwarded <= (units - finished + 1) * unit_rows
    manifest, rows = read_published(f"{s3}/scale/labels")
    assert manifest["rows"] == total == rows + int(str(manifest["rejects"]))
    assert manifest["units"] == units
    assert job("verify", "--output", f"{s3}/scale/labels")[0] == 0


def test_pictures_behind_a_failing_server_are_all_seen(
    s3: str, through: Callable[[Fault], str], seeing: Callable[..., Path], working_folder: Path
) -> None:
    """Every third request for a picture is refused or reset: the labels are those of the bytes."""
    pictures = [noise(seed) for seed in range(60)]
    for number, data in enumerate(pictures):
        (locate(f"{s3}/seen/catalog/pictures") / f"{number}.jpg").write(data)
    ids = [str(number) for number in range(60)]
    for name, images in (("far", [f"pictures/{name}.jpg" for name in ids]), ("near", pictures)):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ids, "image": images}), sink)
        (locate(f"{s3}/seen/catalog") / f"{name}.parquet").write(sink.getvalue())
    asked, failed = count(1), []

    def fault(request: web.Request) -> int | str | None:
        if ".jpg" not in request.path or (number := next(asked)) % 3:
            return None
        failed.append(number)
        return 503 if number % 2 else "reset"

    address, found = through(fault), {}
    for name in ("far", "near"):
        command = [sys.executable, str(ROOT / "jobs" / "label.py"), "--catalog", f"{s3}/seen/catalog/{name}.parquet"]
        command += ["--output", str(working_folder / name), "--model", str(seeing())]
        done = subprocess.run(
            command, env=free_of_ray(AWS_ENDPOINT_URL=address), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found[name] = published(str(working_folder / name)).sort_by("id")
    assert len(failed) >= 20, "nothing failed, so nothing was shown"
    assert set(found["far"].column("image_status").to_pylist()) == {"ok"}
    decided = ["id", "category", "confidence", "alternatives"]
    assert found["far"].select(decided) == found["near"].select(decided)
