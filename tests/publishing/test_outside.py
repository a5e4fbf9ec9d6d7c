"""Files that somebody else may have written: whatever they say, a CatalogerError comes of it at worst, and nothing beyond their folder is opened."""

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cataloger.bundle import read_spec, write_spec
from cataloger.config import PublishConfig, VerifyConfig
from cataloger.data.units import Segment, Unit
from cataloger.errors import CatalogerError, ModelError, StorageError
from cataloger.infra.storage import locate
from cataloger.publishing import pointer, snapshot, upkeep
from cataloger.publishing.parts import write_part
from cataloger.spec import Spec

SPEC = Spec(("A > x", "A > y", "B"), ("title",), 32, "mean", "f", thresholds=(0.5, 0.6))
ABOUT = {
    "catalog": "gone",
    "catalog_fingerprint": "f",
    "model": "m",
    "model_digest": "d",
    "config": {"id_column": "id", "alternatives": 3, "precision": "fp32"},
}
UNITS = [Unit(0, (Segment("x", 0, 0, 3),)), Unit(1, (Segment("x", 0, 3, 2),))]
POINTER, MANIFEST, BUNDLE = "labels/_latest.json", "labels/run=r/_manifest.json", "bundle/cataloger.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published run in `labels`, the same again in `beyond`, and a bundle without weights."""
    room = tmp_path_factory.mktemp("whole")
    for name in ("labels", "beyond"):
        output, parts = locate(str(room / name)), {}
        for unit, rows, rejected in [(0, 3, 0), (1, 1, 1)]:
            labels = pa.table({"id": range(rows), "category": ["A"] * rows})
            rejects = pa.table({"id": range(rejected), "reason": ["r"] * rejected})
            folder = snapshot.run_folder(output, "r")
            parts[unit] = write_part(folder, unit, labels, rejects, {"forwarded": rows}, {"run": "r"})
        snapshot.write_manifest(output, "r", UNITS, parts, ABOUT)
        pointer.publish(output, "r", pointer.look(output))
    (room / "bundle").mkdir()
    write_spec(room / "bundle", SPEC)
    labels_of_config = {"id2label": dict(enumerate(SPEC.categories))}
    (room / "bundle" / "config.json").write_text(json.dumps(labels_of_config))
    return room


@pytest.fixture
def room(whole: Path, working_folder: Path) -> Path:
    return Path(shutil.copytree(whole, working_folder / "room"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def read_all(room: Path) -> None:
    """Every reader of the three files."""
    read_spec(room / "bundle")
    upkeep.verify(VerifyConfig(output=str(room / "labels")))
    upkeep.publish(PublishConfig(output=str(room / "labels")))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """The names in the folder and below that anybody opens meanwhile, as the kernel tells it: Arrow does not go through Python."""
    libc, in_open, is_folder, names = ctypes.CDLL(None, use_errno=True), 0x20, 0x40000000, []  # type: ignore[var-annotated]
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        for below in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            assert libc.inotify_add_watch(watch, bytes(below), in_open) >= 0
        yield names
        while True:
            try:
                events = os.read(watch, 1 << 16)
            except BlockingIOError:
                break
            while events:
                mask, length = (int.from_bytes(events[at : at + 4], "little") for at in (4, 12))
                if not mask & is_folder:
                    names.append(events[16 : 16 + length].rstrip(b"\0").decode())
                events = events[16 + length :]
    finally:
        os.close(watch)


def test_untouched_files_are_read_and_unknown_keys_of_runs_are_legal(room: Path) -> None:
    change(room / MANIFEST, tomorrow={"more": [1]}), change(room / POINTER, tomorrow=1)
    with opened(room / "labels") as names:
        read_all(room)
    assert "part-00000.parquet" in names, "the watch sees what Arrow opens"
    assert asdict(read_spec(room / "bundle")) == asdict(SPEC)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"run": 7}, "run: input should be a valid string"),
        ({"run": "r/../../beyond/run=r"}, "run"),
        ({"run": ".."}, "run"),
        ({"path": "../beyond/run=r"}, "path"),
        ({"manifest": "../beyond/run=r/_manifest.json"}, "manifest"),
    ],
)
def test_a_pointer_leads_to_a_run_of_its_folder_or_nowhere(room: Path, values: dict[str, Any], sentence: str) -> None:
    change(room / POINTER, **values)
    with opened(room / "beyond") as names:
        for read in (upkeep.verify, upkeep.publish):
            config = VerifyConfig if read is upkeep.verify else PublishConfig
            with pytest.raises(StorageError, match=f"_latest.json: {sentence}.*; remove it and publish a run again"):
                read(config(output=str(room / "labels")))  # type: ignore[arg-type]
    assert not names


def outside(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**file, "name": f"../../beyond/run=r/{file['name']}"} for file in files]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"files": outside}, "files: "),
        ({"files": lambda files: files[:1] * 2}, "files: "),
        ({"files": lambda files: files[1:]}, "files: "),
        ({"files": lambda files: [{**file, "rows": 10**12} for file in files]}, "files: "),
        ({"files": lambda files: [{**file, "rows": -1} for file in files]}, "files: "),
        ({"files": {}}, "files: "),
        ({"units": 10**9}, "files: "),
        ({"units": -1}, "files: "),
        ({"units": 2.0}, "units: "),
        ({"labelled": 10**15}, "labelled: "),
        ({"rejects": 0}, "rejects: "),
        ({"rows": "5"}, "rows: "),
        ({"config": {}}, "config.id_column: "),
        ({"model": None}, "model: "),
        ({"run": "q"}, "run: "),
    ],
)
def test_a_manifest_lists_the_parts_of_its_own_run_and_their_rows(
    room: Path, values: dict[str, Any], sentence: str
) -> None:
    stored = json.loads((room / MANIFEST).read_text())
    change(room / MANIFEST, **{key: value(stored[key]) if callable(value) else value for key, value in values.items()})
    output = locate(str(room / "labels"))
    readers: list[Callable[[], object]] = [
        lambda: upkeep.verify(VerifyConfig(output=str(room / "labels"))),
        lambda: upkeep.publish(PublishConfig(output=str(room / "labels"))),
        lambda: pointer.published(output, pointer.look(output)),
    ]
    with opened(room / "beyond") as names:
        for read in readers:
            with pytest.raises(StorageError, match=f"run=r/_manifest.json: {sentence}"):
                read()
    assert not names


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"categories": []}, "categories: "),
        ({"categories": ["A", "A", "B"]}, "categories: "),
        ({"categories": ["A > ", "A > y", "B"]}, "categories: "),
        ({"categories": [1, 2, 3]}, "categories.0: "),
        ({"categories": "ABC"}, "categories: "),
        ({"categories": [f"c{i}" for i in range(100_000)], "thresholds": []}, "100,000 categories.*has 3"),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"max_tokens": 10**12}, "max_tokens: "),
        ({"pooling": "max"}, "pooling: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"temperature": 0.0}, "temperature: "),
        ({"temperature": True}, "temperature: "),
        ({"thresholds": [0.5]}, "thresholds: "),
        ({"thresholds": [0.5, float("nan")]}, "thresholds: "),
        ({"category_thresholds": [0.5, 0.5, 0.5]}, "category_thresholds: "),
        ({"head": "many_categories"}, "thresholds: "),
        ({"head": "many_categories", "thresholds": [], "category_thresholds": [0.5]}, "category_thresholds: "),
        ({"head": "colours"}, "head: must be one_category or many_categories or tags"),
        ({"head": "tags", "thresholds": []}, "label_column: must be a name where head is tags"),
        (
            {"head": "tags", "label_column": "t", "thresholds": [], "words": {}},
            "words: must be null where there are tags",
        ),
        ({"others": [{"column": "", "head": "tags", "categories": ["a"]}]}, "others.*column: must be a name"),
        ({"others": [{"column": "t", "head": "tags", "categories": ["a", "a"]}]}, "categories: "),
        ({"others": [{"column": "t", "head": "tags", "categories": ["a"], "allowed": [[1], None, None]}]}, "allowed: "),
        ({"others": [{"column": "t", "head": "tags", "categories": ["a"], "allowed": [None]}]}, "allowed: "),
        ({"others": 3}, "others: "),
        ({"multi_label": 1, "format_version": 3}, "multi_label: must be true or false"),
        ({"test_fraction": 1.5}, "test_fraction: "),
        ({"group_column": 3}, "group_column: "),
        ({"format_version": 1}, "older version of cataloger"),
        ({"format_version": 7}, "newer version of cataloger"),
        ({"tomorrow": 1}, "newer version of cataloger.*tomorrow"),
        ({"words": {"tomorrow": 1}}, "newer version of cataloger.*words.tomorrow"),
        ({"others": [{"tomorrow": 1}]}, "newer version of cataloger.*others.tomorrow"),
    ],
)
def test_a_bundle_says_what_can_be(room: Path, values: dict[str, Any], sentence: str) -> None:
    change(room / BUNDLE, **values)
    with pytest.raises(ModelError, match=sentence):
        read_spec(room / "bundle")


EVIL = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2, 10**9, 10**30, 0.5, 1e-320, float("nan"), float("inf")]),
    st.sampled_from(["", "r", "..", "A", "\0", "\ud800", "../../etc", "r/../../beyond/run=r", "../beyond/run=r"]),
    st.sampled_from(["../../beyond/run=r/part-00000.parquet", "x" * 5_000]),
    st.sampled_from([[], {}, [[]], ["A"], [0.5], {"id_column": "x"}, [None] * 3]),
)


@st.composite
def tampered(draw: st.DrawFn, document: Any) -> Any:
    """The document with a value replaced, removed or doubled, somewhere in it."""
    document = json.loads(json.dumps(document))
    place = document
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], dict | list) and place[key]) or draw(st.booleans()):
            break
        place = place[key]
    todo = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
    if todo == "remove":
        del place[key]
    elif todo == "double" and isinstance(place[key], list):
        place[key] = place[key] * 2
    # The catalog is what a manifest may name anywhere: verifying compares with it.
    elif key != "catalog":
        place[key] = draw(EVIL)
    return document


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from([POINTER, MANIFEST, BUNDLE]), st.integers(1, 3), st.integers(0, 20))
def test_whatever_a_file_says_is_read_or_refused_and_nothing_beyond_its_folder_is_opened(
    whole: Path, data: st.DataObject, name: str, times: int, cut: int
) -> None:
    document = json.loads((whole / name).read_text())
    for _ in range(times):
        document = data.draw(tampered(document)) if document else document
    text = json.dumps(document).encode()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        room = Path(shutil.copytree(whole, Path(folder) / "room"))
        (room / name).write_bytes(text[: len(text) - cut] if cut > 17 else text)
        with opened(room / "beyond") as names:
            for read in (
                lambda: read_spec(room / "bundle"),
                lambda: upkeep.verify(VerifyConfig(output=str(room / "labels"))),
                lambda: upkeep.publish(PublishConfig(output=str(room / "labels"))),
            ):
                with contextlib.suppress(CatalogerError):
                    read()
        assert not names
