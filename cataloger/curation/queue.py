"""A queue of products that people are asked about, as it is kept beside what their tool reads.

QUEUE/_queue.json      what the queue is of, and the categories to choose from
QUEUE/_products.parquet   the products as the catalog has them
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cataloger import strict
from cataloger.curation.candidates import OF_PRODUCT
from cataloger.data.ids import as_text
from cataloger.errors import CatalogError, StorageError
from cataloger.infra.storage import Location, explain

ABOUT, PRODUCTS = "_queue.json", "_products.parquet"


@dataclass(frozen=True)
class Queue:
    """What was asked. `columns` are those of the products that the model reads; `lists` is whether a product may have several categories."""

    queue: str
    run: str
    catalog: str
    model: str
    format: str
    columns: tuple[str, ...]
    lists: bool
    categories: tuple[str, ...]
    created: str


@dataclass(frozen=True)
class Question:
    """A product for people. Of categories and alternatives (path, confidence), the most probable first."""

    id: str
    text: str
    picture: str | None
    categories: tuple[tuple[str, float], ...]
    alternatives: tuple[tuple[str, float], ...]
    confidence: float
    alike: int
    """Products with the same text, itself among them."""
    weight: float


def id_of(run: str, ids: Sequence[Any]) -> str:
    """The same for the same questions."""
    return hashlib.sha256(json.dumps([run, list(map(str, ids))]).encode()).hexdigest()[:16]


def questions(rows: pa.Table, columns: Sequence[str], picture: str | None) -> list[Question]:
    """Of candidates (`candidates.find`)."""
    found = []
    for identity, row in zip(as_text(rows.column("id")).to_pylist(), rows.to_pylist(), strict=True):
        paths, scores = row.get("categories"), row.get("confidences")
        said = list(zip(paths, scores, strict=True)) if paths is not None else [(row["category"], row["confidence"])]
        shown = row.get(OF_PRODUCT + picture) if picture else None
        found.append(
            Question(
                id=identity,
                text="\n".join(
                    f"{name}: {row[OF_PRODUCT + name]}" for name in columns if row[OF_PRODUCT + name] is not None
                ),
                picture=shown if isinstance(shown, str) else None,
                categories=tuple(said),
                alternatives=tuple((other["category"], other["confidence"]) for other in row["alternatives"]),
                confidence=row["confidence"],
                alike=row["alike"],
                weight=row["weight"],
            )
        )
    return found


def keep(folder: Location, queue: Queue, products: pa.Table) -> None:
    """The queue itself comes last: without it, nothing was asked."""
    sink = io.BytesIO()
    pq.write_table(products, sink, compression="zstd")
    (folder / PRODUCTS).write(sink.getvalue())
    (folder / ABOUT).write(json.dumps(asdict(queue), ensure_ascii=False, indent=1).encode())


def read(folder: Location) -> tuple[Queue, pa.Table]:
    """(the queue, its products). Raises CatalogError where there is none, StorageError where it is damaged."""
    if not (folder / ABOUT).exists():
        raise CatalogError(f"--queue {folder}: is no queue; name the folder that `jobs/review.py export` wrote")
    try:
        queue = strict.parse(Queue, (folder / ABOUT).read())
        return queue, pq.read_table(pa.BufferReader((folder / PRODUCTS).read()))
    except (ValueError, pa.ArrowException) as error:
        raise StorageError(f"--queue {folder}: is damaged, export it again: {explain(error)}") from error
