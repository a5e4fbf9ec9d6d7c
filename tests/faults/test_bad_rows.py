"""Promise: bad rows don't stop the night and don't vanish; a strange night is held back; yesterday's labels stay."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.data.ids import ID_NOT_UTF8
from cataloger.data.texts import NO_TEXT, NOT_UTF8
from conftest import make_bundle

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_session")]
Job = Callable[..., tuple[int, str, str]]


def write(name: str, titles: list[str | None] | pa.Array, ids: list[int] | None = None) -> Path:
    rows = len(titles)
    table = pa.table({"id": ids or range(rows), "title": titles, "brand": ["b"] * rows, "description": ["d"] * rows})
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, name)
    return Path(name)


def flags(bundle: Path, *more: object) -> tuple[object, ...]:
    return ("--catalog", "c", "--output", "labels", "--model", bundle, "--text-columns", "title", *more)


def published() -> tuple[dict[str, object], pa.Table]:
    pointer = json.loads(Path("labels/_latest.json").read_text())
    manifest = json.loads((Path("labels") / pointer["manifest"]).read_text())
    return manifest, pq.read_table(Path("labels") / pointer["path"])


def test_unreadable_bytes_and_a_row_the_model_cannot_take_are_rejected_and_their_neighbours_labelled(
    working_folder: Path, job: Job, tiny_model: Path, labelled: Path
) -> None:
    """The model raises on one token: its embedding table is shorter than the tokenizer's vocabulary."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    folder = make_bundle(working_folder / "bundle", tiny_model, labelled, "mean")
    config = json.loads((folder / "config.json").read_text())
    config["encoder"]["vocab_size"] = 30_000
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    weights[name] = weights[name][:30_000].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = [f"product{piece[2:]}" for piece, number in tokenizer.get_vocab().items() if number >= 30_000]
    beyond = next(text for text in sorted(pieces) if max(tokenizer.encode(text).ids) >= 30_000)
    titles = [f"product {i}".encode() for i in range(500)]
    titles[7], titles[8], titles[490] = b"caf\xe9 \xff", b"", beyond.encode()
    write("c/part.parquet", pa.array(titles, pa.binary()).view(pa.string()))
    code, _, err = job("label", *flags(folder))
    assert code == 0, err
    manifest, labels = published()
    rejects = pq.read_table(f"labels/run={manifest['run']}/_rejects").to_pylist()
    reasons = {row["id"]: row["reason"] for row in rejects}
    assert reasons[7] == NOT_UTF8
    assert reasons[8] == NO_TEXT
    assert "the model raised IndexError" in reasons[490]
    assert set(reasons) == {7, 8, 490}
    assert manifest["rows"] == 500 == len(labels) + len(reasons)
    assert {6, 9, 489, 491} <= set(labels.column("id").to_pylist())
    assert job("verify", "--output", "labels")[0] == 0


def test_ids_of_64_bits_are_labelled_and_an_id_that_nobody_could_read_is_rejected(
    working_folder: Path, job: Job, bundle: Path
) -> None:
    """Both ended every night after the forward pass."""
    ids = [2**64 - 1, 2**63, 7, None]
    pq.write_table(pa.table({"id": pa.array(ids, pa.uint64()), "title": ["tea", "boot", "hat", "ink"]}), "ids.parquet")
    code, _, err = job("label", *flags(bundle)[2:], "--catalog", "ids.parquet")
    assert code == 0, err
    assert published()[1].column("id").to_pylist() == ids
    assert job("verify", "--output", "labels")[0] == 0
    names = pa.array([b"tea", b"caf\xe9", b"hat"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": names, "title": ["tea", "boot", "hat"]}), "names.parquet")
    more = ("--catalog", "names.parquet", "--max-reject-fraction", 0.5, "--publish-anyway")
    code, _, err = job("label", *flags(bundle)[2:], *more)
    assert code == 0, err
    manifest, labels = published()
    assert labels.column("id").to_pylist() == ["tea", "hat"]
    (reject,) = pq.read_table(f"labels/run={manifest['run']}/_rejects", partitioning=None).to_pylist()
    assert reject == {"id": "caf\\xe9", "reason": ID_NOT_UTF8}
    assert job("verify", "--output", "labels")[0] == 0


def test_too_many_rejects_keep_yesterdays_labels(working_folder: Path, job: Job, bundle: Path) -> None:
    write("c/part.parquet", [f"product {i}" for i in range(100)])
    assert job("label", *flags(bundle))[0] == 0
    yesterday = published()[0]["run"]
    write("c/part.parquet", [f"product {i}" if i % 10 else None for i in range(100)])
    code, _, err = job("label", *flags(bundle))
    assert code == 3
    assert "10 of 100 rows were rejected (10.0%, the limit is 1.0%)" in err
    assert published()[0]["run"] == yesterday
    code, _, _ = job("label", *flags(bundle, "--max-reject-fraction", 0.1))
    assert code == 0
    assert published()[0]["rejects"] == 10


def test_a_strange_night_is_held_back_and_says_what_moved(working_folder: Path, job: Job, bundle: Path) -> None:
    write("c/part.parquet", [f"product {i}" for i in range(300)])
    assert job("label", *flags(bundle))[0] == 0
    yesterday = published()[0]["run"]
    # The feed's titles are shifted against its ids: as texts nothing is odd.
    write("c/part.parquet", [f"product {i}" for i in range(100, 400)])
    code, _, err = job("label", *flags(bundle))
    assert code == 3
    assert "is held back" in err
    assert "→" in err
    assert published()[0]["run"] == yesterday
    code, out, _ = job("label", *flags(bundle, "--publish-anyway"))
    assert code == 0
    forwarded = next(line for line in out.splitlines() if "through the model" in line)
    assert forwarded.split("│")[2].strip() == "0", "the parts of the held-back run are used"
    assert published()[0]["run"] != yesterday


def test_a_corrupt_file_is_named_and_nothing_changes(working_folder: Path, job: Job, bundle: Path) -> None:
    rng = np.random.default_rng(0)
    write("c/good.parquet", [f"product {i}" for i in range(300)])
    assert job("label", *flags(bundle))[0] == 0
    yesterday = published()[0]["run"]
    bad = write("c/worse.parquet", [f"product {rng.integers(1 << 40)}" for _ in range(3_000)])
    data = bytearray(bad.read_bytes())
    data[100:20_000] = bytes(19_900)  # the footer is whole, the pages are not
    bad.write_bytes(data)
    code, _, err = job("label", *flags(bundle))
    assert code == 2, err
    assert "worse.parquet: not readable as Parquet" in err
    assert published()[0]["run"] == yesterday


def test_ten_megabyte_strings_are_labelled(working_folder: Path, job: Job, bundle: Path) -> None:
    write("c/part.parquet", ["shoe " * 2_000_000, "汉" * 3_000_000, "x" * 10_000_000, "tea"])
    code, _, err = job("label", *flags(bundle))
    assert code == 0, err
    assert published()[0]["labelled"] == 4


def test_repeated_ids_are_all_labelled(working_folder: Path, job: Job, bundle: Path) -> None:
    write("c/a.parquet", ["tea", "shoe"], [1, 2])
    write("c/b.parquet", ["tea", "boot"], [2, 1])
    assert job("label", *flags(bundle))[0] == 0
    assert sorted(published()[1].column("id").to_pylist()) == [1, 1, 2, 2]
    assert job("verify", "--output", "labels")[0] == 0
