"""What the ingest's rows come to, counted where they lie: the same whatever the tables they are cut into."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import ray

from cataloger.data.images import UNREACHABLE
from cataloger.training.census import LEARNT, census, count, seen_rows
from cataloger.training.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.training.judged import UNUSED
from cataloger.training.rows import IDS, NOT_UTF8, TAGS_LEFT_OUT

KEYS = [(1 << 63) + row for row in range(12)]
pytestmark = pytest.mark.usefixtures("ray_session")


def rows() -> pa.Table:
    """Twelve rows: of each use, with a further answer that some lack, and one that cannot be read."""
    uses = np.array([TRAINING, VALIDATION, UNLABELLED, UNUSED] * 3, np.int8)
    return pa.table(
        {
            "use": uses,
            # Too large for floating-point numbers; what cannot be read has none.
            "key": pa.array([None if use == UNUSED else KEYS[row] for row, use in enumerate(uses)], pa.uint64()),
            "text": ["tea", "café", None, "x"] * 3,
            "labels": pa.array([[0], [1], [], None] * 3, IDS),
            "labels.1": pa.array([[], [2], [], None, [0], [-1], [], None, [], [], [], None], IDS),
            "picture": ["a", None, "b", None] * 3,
            UNREACHABLE: [False, True, False, None] * 3,
            NOT_UTF8: [None] * 7 + ["product 7"] + [None] * 3 + ["product 11"],
            TAGS_LEFT_OUT: [json.dumps({"empty": 2}), *[None] * 7, json.dumps({"empty": 1, "long": 1}), *[None] * 3],
        }
    )


@pytest.mark.parametrize("cuts", [[12], [5, 7], [1] * 12, [0, 12, 0]])
def test_rows_are_counted_whatever_tables_they_are_in(cuts: list[int]) -> None:
    ends = np.cumsum([0, *cuts]).tolist()
    blocks = [ray.put(rows().slice(start, stop - start)) for start, stop in pairwise(ends)]
    found = census(blocks)
    assert found == count(rows())
    assert [found.rows[use] for use in (TRAINING, VALIDATION, UNLABELLED, UNUSED)] == [3, 3, 3, 3]
    assert [found.characters[use] for use in (TRAINING, VALIDATION, UNLABELLED)] == [9, 12, 0]
    assert [found.told[TRAINING, 0], found.told[VALIDATION, 0]] == [3, 3]
    assert [found.told[TRAINING, 1], found.told[VALIDATION, 1]] == [1, 1], (
        "-1 is a category that the model does not know"
    )
    assert (found.not_utf8, found.first_not_utf8, found.pictured, found.unreachable) == (2, "product 7", 6, 3)
    assert found.tags_left_out == {"empty": 3, "long": 1}
    sample = seen_rows(blocks, LEARNT, 6)
    assert sample.recognise(np.array(KEYS, np.uint64)).to_pylist() == [True, True, False, False] * 3
    sample = seen_rows(blocks, (*LEARNT, UNLABELLED), 9)
    assert sample.recognise(np.array(KEYS, np.uint64)).to_pylist() == [True, True, True, False] * 3


def test_of_many_rows_a_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cataloger.training.census.KEPT", 2)
    sample = seen_rows([ray.put(rows())], LEARNT, 6)
    assert sample.every == 4, "a power of two, that samples of several trainings have rows in common"
    assert sample.keys.tolist() == [key for row, key in enumerate(KEYS) if key % 4 == 0 and row % 4 < 2]
