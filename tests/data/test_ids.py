import numpy as np
import pyarrow as pa
import pytest

from cataloger.data.ids import hash_ids, written

BYTES = pa.array([b"tea", b"caf\xe9", None], pa.binary()).view(pa.string())


def test_equal_ids_have_equal_hashes_in_every_type_of_column() -> None:
    small = [0, 5, 200]
    numbers = [hash_ids(pa.array(small, kind)).tolist() for kind in (pa.int16(), pa.int64(), pa.uint8(), pa.uint64())]
    assert numbers == [numbers[0]] * 4
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    strings = [hash_ids(pa.array(["tea", "7"]).cast(kind)).tolist() for kind in kinds]
    assert strings == [strings[0]] * 4
    assert hash_ids(pa.chunked_array([["tea"], ["7"]])).tolist() == strings[0]


def test_ids_of_all_64_bits_and_ids_that_are_not_utf8_have_hashes_of_their_own() -> None:
    large = pa.array([2**64 - 1, 2**63, 2**63 - 1, 0], pa.uint64())
    assert len(set(hash_ids(large).tolist())) == 4
    assert len(set(hash_ids(BYTES).tolist())) == 3


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_a_missing_id_does_not_change_the_hashes_of_the_others(kind: pa.DataType) -> None:
    whole, holed = hash_ids(pa.array([3, 4, 0, 5], kind)), hash_ids(pa.array([3, None, 0, 5], kind))
    assert (whole == holed).tolist() == [True, False, True, True]
    assert len(set(holed.tolist())) == 4, "and is not zero"


def test_ids_are_written_as_they_came_and_spelt_out_where_nobody_could_read_them() -> None:
    spelt, bad = written(BYTES)
    assert (spelt.to_pylist(), bad.tolist()) == (["tea", "caf\\xe9", None], [False, True, False])
    for ids in (pa.array([1, None]), pa.array(["a"]).dictionary_encode()):
        same, bad = written(ids)
        assert same.equals(ids)
        assert not np.any(bad)
