"""How tonight's labels differ from the published ones: the last check before they replace them."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from cataloger import ids
from cataloger.storage import Location

# Products compared one by one; chosen by the hash of their id, so the same ones in both runs.
COMPARED_PRODUCTS = 1_000_000
FLOWS = 5


@dataclass(frozen=True)
class Drift:
    """Shares between 0 and 1.

    `changed`: of the products in both runs, those in another category. `shift`: total variation distance between the
    category distributions, that is the share of labels that would have to move to make them equal.
    `confidence_fall`: mean confidence before minus now. `flows`: (before, now, products) of the commonest changes.
    """

    compared: int
    changed: float
    shift: float
    confidence_fall: float
    flows: tuple[tuple[str, str, int], ...]

    @property
    def worst(self) -> float:
        """The largest of the three, to be held against a limit."""
        return max(self.changed, self.shift, self.confidence_fall)

    def __str__(self) -> str:
        flows = "; ".join(f"{before} → {now} ({count:,})" for before, now, count in self.flows) or "none"
        return (
            f"{self.changed:.1%} of {self.compared:,} compared products changed category, the category distribution "
            f"shifted by {self.shift:.1%}, mean confidence fell by {self.confidence_fall:.3f}; most moved: {flows}"
        )


def compare_runs(before: Sequence[Location], now: Sequence[Location], rows: int) -> Drift:
    """Compare the parts of two runs; `rows` is their size, about."""
    every = ids.sample_every(rows, COMPARED_PRODUCTS)
    old, new = _read(before, every), _read(now, every)
    both = old.labels.merge(new.labels, on="id", suffixes=("_before", "_now"))
    moved = both[both["category_before"] != both["category_now"]]
    flows = Counter(zip(moved["category_before"], moved["category_now"], strict=True)).most_common(FLOWS)
    categories = {*old.counts, *new.counts}
    totals = max(1, old.rows), max(1, new.rows)
    shift = sum(abs(old.counts[c] / totals[0] - new.counts[c] / totals[1]) for c in categories) / 2
    return Drift(
        compared=len(both),
        changed=len(moved) / max(1, len(both)),
        shift=shift if old.rows and new.rows else 0.0,
        confidence_fall=(old.confidence / totals[0] - new.confidence / totals[1]) if old.rows and new.rows else 0.0,
        flows=tuple((before, now, count) for (before, now), count in flows),
    )


@dataclass
class _Run:
    labels: pd.DataFrame
    counts: Counter[str]
    confidence: float
    rows: int


def _read(parts: Sequence[Location], every: int) -> _Run:
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda part: _read_part(part, every), parts))
    counts: Counter[str] = Counter()
    for part in read:
        counts.update(part.counts)
    empty = pd.DataFrame({"id": [], "category": []})
    labels = pd.concat([part.labels for part in read]) if read else empty
    # An id that occurs twice cannot be followed from one run to the next.
    labels = labels.drop_duplicates("id", keep=False)
    return _Run(labels, counts, sum(part.confidence for part in read), sum(part.rows for part in read))


def _read_part(part: Location, every: int) -> _Run:
    with pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
        found = {"category", "categories"} & set(file.schema_arrow.names)
        table = file.read(columns=["id", "confidence", *found])
    frame = table.drop_columns("id").to_pandas()
    if "categories" in found:  # several of them, in any order, count as one
        frame["category"] = [" + ".join(sorted(row)) for row in frame.pop("categories")]
    # By hash: ids that were numbers yesterday and are strings today are simply other ids.
    frame["id"] = ids.hash_ids(table.column("id"))
    counts = Counter(frame["category"].value_counts().to_dict())
    chosen = frame["id"] % np.uint64(every) == 0
    return _Run(frame.loc[chosen, ["id", "category"]], counts, float(frame["confidence"].sum()), len(frame))
