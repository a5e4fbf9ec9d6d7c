import os
from pathlib import Path

import pytest

from cataloger.errors import StorageError
from cataloger.infra.storage import check_writable, locate


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(working_folder: Path) -> None:
    target = locate("folder/file.json")
    target.write(b"old")
    target.write(b"new")
    assert target.read() == b"new"
    assert os.listdir("folder") == ["file.json"]


def test_a_failed_write_keeps_the_old_file(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = locate("file.json")
    target.write(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        target.write(b"new")
    assert target.read() == b"old"
    assert os.listdir(".") == ["file.json"]


def test_an_unwritable_folder_is_named(working_folder: Path) -> None:
    (working_folder / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file/labels.*cannot be written"):
        check_writable(locate("file/labels"))


@pytest.mark.parametrize("uri", ["ftp://bucket/x", "s3://", "gs://"])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="scheme|bucket"):
        locate(uri)
