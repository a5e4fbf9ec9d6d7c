"""Whether eight bits are as good as the model's own arithmetic, and faster here: asked of some of the catalog's rows."""

import json
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
from cataloger.errors import ConfigError
from cataloger.heads.columns import answer_in, columns_of
from cataloger.model.quantised import attempts, check_installed, quantise
from cataloger.model.tiers import Tiers
from cataloger.spec import Spec

log = logging.getLogger(__name__)
# Of the rows that are looked at, the ranges of numbers go by the first and what they do to the answers is seen in the others.
ROWS, CALIBRATING, BATCHES = 4_096, 1_024, 64
AGREEMENT = 0.995
# How much faster eight bits must be to be worth their while, where nobody asked for them.
PAYS = 1.1


def check_possible() -> None:
    """Raises ConfigError."""
    check_installed()


def layers_of(folder: Path) -> int:
    """Of the network in a bundle."""
    config = json.loads((folder / "config.json").read_text())
    return int((config.get("encoder") or config).get("num_hidden_layers") or 0)


def quantised(bundle: Path, catalog: Catalog, config: CompressConfig, insist: bool) -> str | None:
    """Give the bundle a network in eight bits, and say how it is; nothing where it does not pay, unless somebody insists.

    Raises ConfigError where it would change too many answers.
    """
    try:
        check_installed()
    except ConfigError as problem:
        if insist:
            raise
        log.info("%s", problem)
        return None
    spec = read_spec(bundle).reading(config.text_columns, config.image_column)
    spec = spec.without_tiers()
    values = some_rows(catalog, spec, bundle, ROWS)
    known, judged = (
        values.slice(0, min(CALIBRATING, len(values) // 2)),
        values.slice(min(CALIBRATING, len(values) // 2)),
    )
    _remove(bundle)  # of an earlier network
    own, seconds = _asked(bundle, spec, judged, "auto")
    best = 0.0
    for pattern in attempts(layers_of(bundle)):
        left = quantise(bundle, _batches(bundle, spec, known), pattern)
        found, own_seconds = _asked(bundle, spec, judged, "int8")
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


def _remove(bundle: Path) -> None:
    for name in (INT8, INT8_WEIGHTS):
        (bundle / name).unlink(missing_ok=True)


def _batches(bundle: Path, spec: Spec, values: pa.Array) -> list[Batch]:
    tiers = Tiers(bundle, spec=spec, precision="fp32")
    encoded = tiers.input.encode(values)
    groups = list(pack(encoded.costs, max(64, int(encoded.costs.sum()) // BATCHES), 64))
    return [encoded.batch(rows) for rows in groups]


def _asked(bundle: Path, spec: Spec, values: pa.Array, precision: Precision) -> tuple[npt.NDArray[np.object_], float]:
    """(the answer to each row, as one string, the seconds of the network alone)"""
    tiers = Tiers(bundle, spec=spec, precision=precision)
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
