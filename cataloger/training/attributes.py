"""Which names of tags a category may have: learnt from the training rows, or told by a file."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Ragged
from cataloger.errors import CatalogError
from cataloger.infra.storage import locate
from cataloger.spec import TAGS, Spec
from cataloger.taxonomy import SEPARATOR
from cataloger.training.examples import TRAINING

log = logging.getLogger(__name__)
AUTO, OFF = "auto", "off"
COLUMNS = ("category_path", "name")
# Of fewer products of a category, it is not known what else it may have.
ENOUGH = 10


def told_attributes(uri: str, categories: Sequence[str], names: Sequence[str]) -> tuple[tuple[int, ...] | None, ...]:
    """For each category, the numbers of the names that a Parquet file says it may have; null where it says nothing of it. Raises CatalogError."""
    location = locate(uri)
    try:
        table = pq.read_table(location.path, filesystem=location.filesystem, columns=list(COLUMNS))
        pairs = list(zip(*(table.column(name).cast(pa.string()).to_pylist() for name in COLUMNS), strict=True))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CatalogError(
            f"--category-attributes {uri}: cannot be read as Parquet with the columns {' and '.join(COLUMNS)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    place, number = {path: n for n, path in enumerate(categories)}, {name: n for n, name in enumerate(names)}
    found: defaultdict[int, set[int]] = defaultdict(set)
    strange = 0
    for path, name in pairs:
        written = SEPARATOR.join(step.strip() for step in (path or "").split(SEPARATOR))
        if written in place and (name or "").strip() in number:
            found[place[written]].add(number[name.strip()])
        else:
            strange += 1
    if strange:
        log.warning(
            "--category-attributes %s: %s pairs are of a category or name that the training does not know", uri, strange
        )
    if not found:
        raise CatalogError(
            f"--category-attributes {uri}: has no category and name of the training catalog; name the right file"
        )
    return tuple(tuple(sorted(found[one])) if one in found else None for one in range(len(categories)))


def with_learnt_attributes(spec: Spec, blocks: Sequence[Any], config: TrainConfig) -> Spec:
    """The spec with the names that the products of each category have in the training rows, where it has categories first, and tags."""
    if spec.head == TAGS or config.category_attributes != AUTO:
        return spec
    others = list(spec.others)
    for number, other in enumerate(others, 1):
        if other.head == TAGS:
            allowed = _learnt(blocks, number, len(spec.categories))
            others[number - 1] = replace(other, allowed=allowed)
            sizes = [len(names) for names in allowed if names is not None]
            log.info(
                "%s: a category may have %.1f of %s names on average; %s categories may have all",
                other.column,
                float(np.mean(sizes)) if sizes else len(other.categories),
                len(other.categories),
                f"{len(allowed) - len(sizes):,}",
            )
    return replace(spec, others=tuple(others))


def _learnt(blocks: Sequence[Any], number: int, categories: int) -> tuple[tuple[int, ...] | None, ...]:
    names: defaultdict[int, set[int]] = defaultdict(set)
    products: IntArray = np.zeros(categories, np.int64)
    for block in blocks:
        table = ray.get(block)
        table = table.filter(pc.equal(table.column("use"), TRAINING))
        own, words = (Ragged.from_arrow(table.column(column)) for column in ("labels", f"labels.{number}"))
        # A row with words that nobody knows of may have further names.
        whole = np.flatnonzero((words.lengths > 0) & ~words.has(words.flat < 0))
        products += np.bincount(own.take(whole).flat, minlength=categories)
        tagged = np.flatnonzero(words.flat > 0)
        rows = np.repeat(np.arange(len(words)), words.lengths)[tagged]
        of_rows = own.take(rows)
        pairs = np.stack([of_rows.flat, np.repeat((words.flat[tagged] - 1) // 2, of_rows.lengths)], axis=1)
        for category, name in np.unique(pairs, axis=0).tolist():
            names[category].add(name)
    return tuple(tuple(sorted(names[one])) if products[one] >= ENOUGH else None for one in range(categories))
