"""What another model would do to a catalog: which products would change category, and how many somebody would have to look at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cataloger.bundle import read_spec
from cataloger.data.catalog import open_catalog
from cataloger.heads.columns import published_in
from cataloger.labeling.predict import predict_rows
from cataloger.labeling.reading import TEXT
from cataloger.model.registry import ModelSource

PRODUCTS = 20_000
FLOWS = 15


@dataclass(frozen=True)
class Flow:
    """Products that would move from one category to another; `example` is one of them."""

    before: str
    after: str
    products: int
    example: str


@dataclass(frozen=True)
class Effect:
    """On a sample of `products`: shares between 0 and 1, and the largest flows."""

    catalog: str
    products: int
    changed: float
    review_before: float
    review_after: float
    flows: tuple[Flow, ...]


def effects(
    uri: str,
    id_column: str,
    text_columns: tuple[str, ...] | None,
    image_column: str | None,
    sources: Sequence[ModelSource],
    *,
    use_gpu: bool,
) -> list[Effect]:
    """That of every other model against the first, on the same sample of about 20,000 products. Needs a running Ray.

    Each reads the columns it was trained on, where there are no others. Raises CatalogError.
    """
    answers = []
    for number, source in enumerate(sources, 1):
        spec = read_spec(source.folder)
        spec = spec.reading(text_columns, image_column if spec.picture else None)
        catalog = open_catalog(uri, id_column, spec.text_columns, picture=spec.picture)
        found = predict_rows(
            f"catalog, model {number} of {len(sources)}",
            catalog,
            {"id": id_column, "text": TEXT},
            source,
            spec=spec,
            precision="auto",
            use_gpu=use_gpu,
            at_most=PRODUCTS,
        )
        answers.append(found.labels)
    return [_effect(uri, answers[0], other) for other in answers[1:]]


def _effect(uri: str, first: pa.Table, second: pa.Table) -> Effect:
    """Over the rows that both models could label."""
    _, left, right = np.intersect1d(
        first.column("row").to_numpy(), second.column("row").to_numpy(), return_indices=True
    )
    first, second = first.take(pa.array(left)), second.take(pa.array(right))
    before, after = (published_in(labels.schema).whole(labels) for labels in (first, second))
    moved = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    counts = Counter((before[place], after[place]) for place in moved)
    texts = second.column("text").to_pylist()
    example = {(before[place], after[place]): texts[place] for place in reversed(moved)}
    return Effect(
        catalog=uri,
        products=len(before),
        changed=len(moved) / max(1, len(before)),
        review_before=_share(first),
        review_after=_share(second),
        flows=tuple(Flow(*pair, count, example[pair]) for pair, count in counts.most_common(FLOWS)),
    )


def _share(labels: pa.Table) -> float:
    return float(np.mean(labels.column("needs_review").to_numpy())) if len(labels) else 0.0
