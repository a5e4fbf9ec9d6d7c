"""What teachers answered to the rows of a training: computed once, kept in its folder, and read by every worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cataloger.data.text import hash_words
from cataloger.heads.arrays import FloatArray
from cataloger.infra.storage import Location

# The column of the ingest's tables that says which answer is a row's.
HASH = "hash"


@dataclass(frozen=True)
class Lessons:
    """For N things that are read, in the order of their keys: the categories that teachers found most probable, and how probable each is.

    Where several rows are read alike, they have one answer.
    """

    keys: npt.NDArray[np.uint64]
    """[N], ascending."""
    labels: npt.NDArray[np.int32]
    """[N, K]"""
    probabilities: FloatArray
    """[N, K]; 0 where a teacher said nothing more."""

    @classmethod
    def mean(cls, teachers: Sequence["Lessons"]) -> "Lessons":
        """What several teachers say together: the mean of their probabilities (Hinton et al. 2015, section 3), of as many categories as
        the most talkative of them names."""
        if len(teachers) == 1:
            return teachers[0]
        keys = teachers[0].keys
        for other in teachers[1:]:
            keys = np.intersect1d(keys, other.keys)
        found = [one.of(keys) for one in teachers]
        width = max(one.labels.shape[1] for one in teachers)
        labels = np.concatenate([labels for labels, _ in found], axis=1)
        shares = np.concatenate([shares / np.float32(len(teachers)) for _, shares in found], axis=1)
        # The same category by several teachers: its shares are added up where it stands first.
        order = np.argsort(labels, axis=1, kind="stable")
        labels, shares = np.take_along_axis(labels, order, 1), np.take_along_axis(shares, order, 1)
        for place in range(labels.shape[1] - 1, 0, -1):
            same = labels[:, place] == labels[:, place - 1]
            shares[:, place - 1] += np.where(same, shares[:, place], 0)
            shares[:, place] = np.where(same, 0, shares[:, place])
        best = np.argsort(-shares, axis=1, kind="stable")[:, :width]
        return cls(keys, np.take_along_axis(labels, best, 1), np.take_along_axis(shares, best, 1))

    def of(self, keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int32], FloatArray]:
        """(labels, probabilities), each [rows, K], of rows by their keys; all probabilities are 0 of a row that nobody answered."""
        place = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        if not len(self.keys):
            return np.zeros((len(keys), 1), np.int32), np.zeros((len(keys), 1), np.float32)
        known = self.keys[place] == keys
        return self.labels[place], np.where(known[:, None], self.probabilities[place], np.float32(0))

    def write(self, place: Location) -> None:
        width = self.labels.shape[1]
        flat = {"labels": self.labels.astype(np.int32), "probabilities": self.probabilities.astype(np.float32)}
        columns = {name: pa.FixedSizeListArray.from_arrays(array.reshape(-1), width) for name, array in flat.items()}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"key": self.keys, **columns}), sink)
        place.write(sink.getvalue())

    @classmethod
    def read(cls, place: Location) -> "Lessons":
        table = pq.read_table(pa.BufferReader(place.read())).combine_chunks()
        labels, probabilities = (
            column.flatten().to_numpy().reshape(len(table), -1)
            for column in (table.column(name).combine_chunks() for name in ("labels", "probabilities"))
        )
        return cls(table.column("key").to_numpy(), labels, probabilities)


def keys(hashes: pa.Array) -> npt.NDArray[np.uint64]:
    """Of what is read, by its hash as labels have it (`text_hash`); 0 where there is nothing."""
    found = np.zeros(len(hashes), np.uint64)
    there = hashes.is_valid().to_numpy(zero_copy_only=False)
    if there.any():
        found[there] = hash_words(hashes.drop_null())[:, 0]
    return found


def keys_of(blocks: Sequence[Any], use: int) -> npt.NDArray[np.uint64]:
    """Those of the ingest's rows of one use, in their order."""
    tables = [ray.get(block) for block in blocks]
    # Rows that are left out have none, and pyarrow would make floating-point numbers of all.
    found = [table.column(HASH).filter(pa.array(table.column("use").to_numpy() == use)).to_numpy() for table in tables]
    return np.concatenate([np.empty(0, np.uint64), *found])
