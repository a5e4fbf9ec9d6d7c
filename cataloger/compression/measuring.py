"""A compressed model beside the one it was made from: on rows that neither has learnt from, where the catalog tells which those are."""

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cataloger.bundle import INT8_WEIGHTS, WEIGHTS, WORDS, read_spec
from cataloger.compression.precision import wholes
from cataloger.config import CompressConfig
from cataloger.data import seen
from cataloger.data.catalog import Catalog
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.errors import CatalogError
from cataloger.heads.columns import columns_of
from cataloger.labeling.predict import Predicted, predict_rows
from cataloger.model.registry import ModelSource
from cataloger.spec import ONE_CATEGORY, TAGS, Spec

log = logging.getLogger(__name__)
# Of larger catalogs a sample of products, the same one for both.
MOST_ROWS = 50_000
WRITTEN = "written"


@dataclass(frozen=True)
class Figures:
    """Of one model."""

    megabytes: float
    """Of what labelling loads."""
    texts_per_second: float
    """Of one model actor, words and network together."""
    accuracy: float | None
    """On the rows that have a category, where there are any."""
    needs_review: float
    """Share of the rows."""

    def metrics(self) -> dict[str, float]:
        found = {
            "megabytes": self.megabytes,
            "texts_per_second": self.texts_per_second,
            "needs_review": self.needs_review,
        }
        return found if self.accuracy is None else {**found, "accuracy": self.accuracy}


def measure(
    config: CompressConfig, catalog: Catalog, judge: Catalog | None, source: ModelSource, spec: Spec, bundle: Path
) -> tuple[Figures, Figures, float, int]:
    """(figures of the model as it was, those of the bundle, the share of rows with the same answer, how many there are), on the rows of
    `judge`, or on those of the catalog that training held out."""
    before, after = (
        _asked(config, catalog, judge, one, own, title)
        for one, own, title in (
            (source, spec, "model"),
            (ModelSource(bundle, "compressed", None), _alike(read_spec(bundle), spec), "compressed"),
        )
    )
    _, *places = np.intersect1d(*(one.labels.column("row").to_numpy() for one in (before, after)), return_indices=True)
    first, second = (one.labels.take(pa.array(place)) for one, place in zip((before, after), places, strict=True))
    if not len(first):
        raise CatalogError(
            f"catalog {config.eval_catalog or config.catalog}: has no row that the model can read; check --text-columns"
        )
    same, true = wholes(first, spec) == wholes(second, spec), _true(config, judge or catalog, first, spec)
    return (
        _figures(source.folder, before, first, spec, true),
        _figures(bundle, after, second, spec, true),
        float(np.mean(same)),
        len(same),
    )


def _alike(own: Spec, spec: Spec) -> Spec:
    """The spec of the compressed model, which reads the columns that the other one was asked to read."""
    return own.reading(spec.text_columns or None, spec.picture.column if spec.picture else None)


def _asked(
    config: CompressConfig, catalog: Catalog, judge: Catalog | None, source: ModelSource, spec: Spec, title: str
) -> Predicted:
    trained = read_spec(source.folder)
    alike = (spec.text_columns, spec.picture) == (trained.text_columns, trained.picture)
    told = config.label_column in (judge or catalog).schema.names
    kept = {"id": config.id_column, **({WRITTEN: config.label_column} if told else {})}
    ask = functools.partial(predict_rows, f"ask {title}", source=source, precision="auto", use_gpu=config.use_gpu)
    held_out = spec.test_fraction or spec.validation_fraction or 0.0
    if held_out and not judge and alike and (not spec.group_column or spec.group_column in catalog.schema.names):
        apart = replace(spec, test_fraction=held_out)
        found = ask(catalog, kept, spec=apart, held_out=True, at_most=round(MOST_ROWS / held_out))
        if len(found.labels):
            return found
    found = ask(judge or catalog, kept, spec=spec, at_most=MOST_ROWS)
    learnt = 0.0 if judge else seen.share(found.labels.column("seen")) or 0.0
    if learnt > seen.TOLERATED:
        log.warning(
            "the %s was trained on %.0f%% of the rows that it is measured by, so it looks too good; name others with --eval-catalog",
            title if title == "model" else f"{title} model",
            100 * learnt,
        )
    return found


def _true(config: CompressConfig, catalog: Catalog, labels: pa.Table, spec: Spec) -> list[str | None] | None:
    """The category of each row as `whole` says it; None where the catalog has none, or the model does not answer with categories."""
    if WRITTEN not in labels.column_names or spec.head == TAGS:
        return None
    counts = count_labels(catalog, config.label_column, config.id_column)
    names, _ = normalise_labels(counts, str(catalog.location), config.label_column)
    written = labels.column(WRITTEN).to_pylist()
    if spec.head == ONE_CATEGORY:
        return [names.get(one) for one in written]
    return [
        " + ".join(sorted({names[path] for path in row if path in names})) or None if row else None for row in written
    ]


def _figures(
    folder: Path, predicted: Predicted, labels: pa.Table, spec: Spec, true: list[str | None] | None
) -> Figures:
    files = (INT8_WEIGHTS if (folder / INT8_WEIGHTS).exists() else WEIGHTS, WORDS)
    size = sum((folder / name).stat().st_size for name in files if (folder / name).exists())
    given = columns_of(spec).whole(labels)
    right = [one == other for one, other in zip(true or (), given, strict=False) if one is not None]
    return Figures(
        megabytes=size / 1e6,
        texts_per_second=predicted.cost.answered_per_second,
        accuracy=float(np.mean(right)) if right else None,
        needs_review=float(np.mean(labels.column("needs_review").to_numpy())),
    )
