"""Whether eight bits are as good as the model's own arithmetic, and faster here: asked of some of the catalog's rows."""

import logging
import time
from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.bundle import INT8, INT8_WEIGHTS, read_spec
from cataloger.compression.texts import some_rows
from cataloger.config import CompressConfig, Precision
from cataloger.data.batching import Batch, pack
from cataloger.data.catalog import Catalog
from cataloger.data.inputs import input_of
from cataloger.errors import ConfigError
from cataloger.heads.columns import answer_in, columns_of
from cataloger.infra import runtime
from cataloger.model.quantised import ATTEMPTS, missing_package, quantise
from cataloger.model.tiers import Tiers
from cataloger.spec import Spec

log = logging.getLogger(__name__)
# Rows that are looked at; of these, as many for the ranges of numbers and to see what they do to the answers, at most.
LOOKED_AT, CALIBRATING, JUDGED = 32_768, 1_024, 3_072
# Of rows that training held out, enough to judge by; and rows without which nothing can be said.
ENOUGH, LEAST_ROWS = 500, 16
# Batches that the ranges go by.
BATCHES = 64
AGREEMENT = 0.995
# How much faster eight bits must be to be worth their while, where nobody asked for them.
PAYS = 1.1


def check_possible() -> None:
    """Raises ConfigError."""
    if package := missing_package():
        raise ConfigError(
            f"--precision int8: needs the package {package}; pip install 'cataloger[int8]', or leave the flag out"
        )


def quantised(
    bundle: Path, catalog: Catalog, judge: Catalog | None, config: CompressConfig, insist: bool
) -> str | None:
    """Give the bundle a network in eight bits, and say how it is; nothing where it does not pay, unless somebody insists.

    Raises ConfigError where it would change too many answers.
    """
    if not insist and (package := missing_package()):
        log.info("eight bits are not tried: they need the package %s (pip install 'cataloger[int8]')", package)
        return None
    if not insist and runtime.capacity("GPU"):
        log.info("eight bits are not tried: they are for CPUs, and the cluster has GPUs")
        return None
    spec = read_spec(bundle).reading(config.text_columns, config.image_column).without_tiers()
    known, judged, where = *_apart(*some_rows(catalog, spec, bundle, LOOKED_AT)), config.catalog
    if judge and not spec.picture:  # where pictures lie is told by their own catalog
        judged, where = _apart(*some_rows(judge, spec, bundle, LOOKED_AT))[1], config.eval_catalog or ""
    if len(judged) < LEAST_ROWS:
        if not insist:
            return None
        raise ConfigError(
            f"catalog {where}: has {len(judged)} rows to judge by that the model can read; eight bits need {LEAST_ROWS}"
        )
    _remove(bundle)  # of an earlier network
    base = catalog.base
    own, seconds = _asked(bundle, spec, judged, "auto", base)
    best = 0.0
    for pattern in ATTEMPTS:
        left = quantise(bundle, _batches(bundle, spec, known, base), pattern)
        found, own_seconds = _asked(bundle, spec, judged, "int8", base)
        agreement = float(np.mean(found == own))
        log.info(
            "eight bits: the same answer to %.2f%% of %s rows, %.2f times as fast%s",
            100 * agreement,
            f"{len(judged):,}",
            seconds / own_seconds,
            f"; {len(left)} linear maps stay as they are" if left else "",
        )
        if agreement >= AGREEMENT:
            if insist or seconds / own_seconds >= PAYS:
                return f"int8{f' but for {len(left)} linear maps' if left else ''}"
            _remove(bundle)
            return None
        best = max(best, agreement)
        _remove(bundle)
    said = f"eight bits change {1 - best:.1%} of the answers to {len(judged):,} rows, more than {1 - AGREEMENT:.1%}"
    if insist:
        raise ConfigError(f"--precision int8: {said}; leave the flag out")
    log.info("%s: left out", said)
    return None


def _apart(values: pa.Array, held_out: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    """(rows for the ranges of numbers, rows to judge by): the latter are such as the model has not learnt from, of which it is less sure,
    where there are enough."""
    draw = np.random.default_rng(0).permutation(len(values))
    judged = draw[held_out[draw]] if held_out.sum() >= ENOUGH else draw[: max(LEAST_ROWS, len(draw) * 3 // 4)]
    others = np.setdiff1d(draw, judged, assume_unique=True)
    others = others[np.random.default_rng(1).permutation(len(others))] if len(others) else draw
    return values.take(pa.array(others[:CALIBRATING])), values.take(pa.array(judged[:JUDGED]))


def _remove(bundle: Path) -> None:
    for name in (INT8, INT8_WEIGHTS):
        (bundle / name).unlink(missing_ok=True)


def _batches(bundle: Path, spec: Spec, values: pa.Array, base: str) -> list[Batch]:
    encoded = input_of(spec, bundle, base).encode(values)
    groups = list(pack(encoded.costs, max(64, int(encoded.costs.sum()) // BATCHES), 64))
    return [encoded.batch(rows) for rows in groups]


def _asked(
    bundle: Path, spec: Spec, values: pa.Array, precision: Precision, base: str
) -> tuple[npt.NDArray[np.object_], float]:
    """(the answer to each row, as one string, the seconds of the network alone)"""
    tiers = Tiers(bundle, spec=spec, precision=precision, base=base)
    encoded = tiers.encode(values)
    answers = tiers.answer(values, encoded=encoded)
    started = time.perf_counter()
    deque(tiers.network.logits(encoded), maxlen=0)
    return wholes(pa.table(tiers.columns.to_labels(answers)), spec), time.perf_counter() - started


def wholes(labels: pa.Table, spec: Spec) -> npt.NDArray[np.object_]:
    """[rows] all that a model answers to a row, as one string."""
    first, *others = spec.answers
    found = [columns_of(first).whole(labels)]
    found += [columns_of(one).whole(answer_in(labels, one.label_column)) for one in others]
    return np.array(["\n".join(row) for row in zip(*found, strict=True)], object)
