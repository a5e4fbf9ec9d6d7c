"""What is written to disk, to the byte.

Whoever changes it on purpose raises `LAYOUT` or `FORMAT` with it. Another version of pyarrow may write other bytes too.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.bundle import SPEC, read_spec, write_spec
from cataloger.heads.columns import assemble, columns_of
from cataloger.infra.storage import locate
from cataloger.publishing.parts import part_name, write_part
from cataloger.spec import MANY_CATEGORIES, Spec

ONE = Spec(
    ("Fruit > Apple", "Fruit > Pear", "Tool"),
    ("title", "brand"),
    max_tokens=32,
    pooling="mean",
    catalog_fingerprint="0123456789abcdef",
    test_fraction=0.2,
    temperature=1.25,
    thresholds=(0.7, 0.6),
    group_column="group",
)
MANY = replace(ONE, head=MANY_CATEGORIES, thresholds=(0.4,), category_thresholds=(0.5, 0.25, 0.5))


def part_of(answers: pa.Table, spec: Spec) -> tuple[pa.Table, str]:
    rows = pa.table(
        {
            "id": [7, 8, 9, 10],
            "text_hash": [b"a" * 16, b"b" * 16, b"a" * 16, b"c" * 16],
            "place": [0, 1, 0, 2],
            "reason": pa.array([None, None, None, "no text in any of the text columns"]),
        }
    )
    labels, rejects = assemble(
        rows, answers.append_column("error", pa.nulls(len(answers), pa.string())), columns_of(spec)
    )
    write_part(locate("run"), 0, labels, rejects, {"forwarded": 3}, {"run": "r", "model_digest": "d"})
    written = Path("run", part_name(0))
    return pq.read_table(written), hashlib.sha256(written.read_bytes()).hexdigest()[:16]


def floats(values: list[object]) -> pa.Array:
    return pa.array(values, pa.list_(pa.float32()))


def whole(values: list[object]) -> pa.Array:
    return pa.array(values, pa.list_(pa.int32()))


def test_a_part_of_one_category(working_folder: Path) -> None:
    answers = pa.table(
        {
            "label": pa.array([0, 2, 1], pa.int32()),
            "confidence": pa.array([0.625, 0.875, 0.5], pa.float32()),
            "levels": floats([[0.75, 0.625], [0.875, float("nan")], [0.5, 0.5]]),
            "alternatives": whole([[1, 2], [0, 1], [0, 2]]),
            "alternative_confidence": floats([[0.25, 0.125], [0.0625, 0.0625], [0.25, 0.25]]),
        }
    )
    table, digest = part_of(answers, ONE)
    assert table.to_pylist()[1] == {
        "id": 8,
        "category": "Tool",
        "confidence": 0.875,
        "level_confidences": [0.875],
        "alternatives": [
            {"category": "Fruit > Apple", "confidence": 0.0625},
            {"category": "Fruit > Pear", "confidence": 0.0625},
        ],
        "trusted_category": "Tool",
        "needs_review": False,
        "text_hash": b"b" * 16,
    }
    assert digest == "264025d1e77f311b"


def test_a_part_of_many_categories(working_folder: Path) -> None:
    answers = pa.table(
        {
            "labels": whole([[0, 1], [], [2]]),
            "probabilities": floats([[0.75, 0.5], [], [0.875]]),
            "confidence": pa.array([0.375, 0.5, 0.875], pa.float32()),
            "alternatives": whole([[2], [0], [1, 0]]),
            "alternative_confidence": floats([[0.125], [0.25], [0.125, 0.0625]]),
        }
    )
    table, digest = part_of(answers, MANY)
    assert table.to_pylist()[0] == {
        "id": 7,
        "categories": ["Fruit > Apple", "Fruit > Pear"],
        "confidences": [0.75, 0.5],
        "confidence": 0.375,
        "alternatives": [{"category": "Tool", "confidence": 0.125}],
        "needs_review": True,
        "text_hash": b"a" * 16,
    }
    assert digest == "8e0f90c364d65679"


def test_what_a_bundle_says_of_itself(working_folder: Path) -> None:
    write_spec(Path(), MANY)
    assert (
        Path(SPEC).read_text()
        == """\
{
 "categories": [
  "Fruit > Apple",
  "Fruit > Pear",
  "Tool"
 ],
 "text_columns": [
  "title",
  "brand"
 ],
 "max_tokens": 32,
 "pooling": "mean",
 "catalog_fingerprint": "0123456789abcdef",
 "test_fraction": 0.2,
 "test_start": 0.0,
 "validation_fraction": null,
 "temperature": 1.25,
 "thresholds": [
  0.4
 ],
 "head": "many_categories",
 "label_column": "",
 "category_thresholds": [
  0.5,
  0.25,
  0.5
 ],
 "group_column": "group",
 "words": null,
 "picture": null,
 "others": [],
 "format_version": 6
}"""
    )
    Path("config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
    assert read_spec(Path()) == MANY
