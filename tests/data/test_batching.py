from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cataloger.data.batching import BATCHES_PER_START, Tokens, pack, slots

lengths = st.lists(st.integers(1, 200), max_size=300).map(lambda values: np.array(values, np.int64))


@given(lengths, st.integers(1, 1_000), st.integers(1, 400))
def test_every_row_is_packed_once_within_both_budgets(lengths: np.ndarray, budget: int, most: int) -> None:
    batches = list(pack(lengths, budget, most))
    rows = np.concatenate(batches) if batches else np.array([], int)
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or (len(batch) * lengths[batch].max() <= budget and len(batch) <= most)
    assert slots(lengths, budget, most) == sum(len(batch) * lengths[batch].max() for batch in batches)


@given(lengths, st.integers(64, 2_000), st.integers(1, 400))
def test_no_simpler_cut_costs_less(lengths: np.ndarray, budget: int, most: int) -> None:
    def cost(batches: list[np.ndarray]) -> float:
        return sum(len(batch) * lengths[batch].max() + budget / BATCHES_PER_START for batch in batches)

    def cut(rows: np.ndarray) -> list[np.ndarray]:
        room = max(1, min(budget // lengths[rows].max(initial=1), most))
        return [rows[start : start + room] for start in range(0, len(rows), room)]

    packed = cost(list(pack(lengths, budget, most)))
    without_padding = [batch for length in np.unique(lengths) for batch in cut(np.flatnonzero(lengths == length))]
    assert packed <= cost(without_padding) + 1e-9
    assert packed <= cost(cut(np.argsort(-lengths))) + 1e-9


def test_padding_restores_the_tokens() -> None:
    lists = [[5, 6, 7], [8], [], [9, 10]]
    tokens = Tokens.from_arrow(pa.array([[1], *lists], pa.list_(pa.int32())).slice(1), pad_id=-1)
    ids, mask = tokens.batch(np.array([3, 0, 2])).values()
    assert ids.tolist() == [[9, 10, -1], [5, 6, 7], [-1, -1, -1]]
    assert mask.tolist() == [[True, True, False], [True, True, True], [False, False, False]]


@settings(deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4), max_size=4))
def test_the_chunks_of_a_column_are_joined(chunks: list[list[list[int]]]) -> None:
    arrays = [pa.array([[7], *chunk], pa.list_(pa.int32())).slice(1) for chunk in chunks]
    tokens = Tokens.from_arrow(pa.chunked_array(arrays, pa.list_(pa.int32())))
    rows = [row for chunk in chunks for row in chunk]
    assert [tokens.flat[a:b].tolist() for a, b in pairwise(tokens.offsets)] == rows
