"""What a training does where nobody asked for anything else, by the size of its catalog.

The rules are drawn through what validation rows preferred on catalogs of 1,000 to 40,000 rows (docs/quality.md).
"""

import math
from dataclasses import replace

from cataloger.config import TrainConfig
from cataloger.spec import ONE_CATEGORY

# At a million rows; each ten times fewer rows have so many epochs more.
EPOCHS, EPOCHS_PER_DECADE, MOST_EPOCHS = 3.0, 2.4, 12
ROWS_PER_BATCH_ROW, LEAST_BATCH, MOST_BATCH = 300, 32, 256
# What mwpd2020's validation rows had preferred; instacart's had preferred twice as much. Smaller ones were not compared.
ADVERSARIAL = 1.0
LEVEL_WEIGHT = 0.5
# The share of the rows that tells how well a model does, and how many tell it well enough: each epoch asks about all of them. In steps, so
# that catalogs of about the same size have the same.
HELD_OUT, ENOUGH_HELD_OUT = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001), 100_000


def settled(config: TrainConfig, rows: int, head: str, continued: bool = False) -> tuple[TrainConfig, str]:
    """(the configuration without open choices, what was chosen and why) for so many training rows and one kind of answer; a training that
    goes on from a model that knows most categories has a third of the epochs."""
    chosen: dict[str, object] = {}
    if config.epochs is None:
        chosen["epochs"] = max(1, round(epochs_for(rows) / 3)) if continued else epochs_for(rows)
    if config.batch_size is None:
        chosen["batch_size"] = batch_size_for(rows)
    if config.adversarial is None:
        chosen["adversarial"] = ADVERSARIAL if config.fine_tune == "all" and not config.image_column else 0.0
    if config.level_weights is None and head == ONE_CATEGORY:
        chosen["level_weights"] = (LEVEL_WEIGHT,)
    flags = " ".join(f"--{name.replace('_', '-')} {_shown(value)}" for name, value in chosen.items())
    return replace(config, **chosen), f"for about {rows:,} training rows: {flags}" if chosen else ""  # type: ignore[arg-type]


def held_out_of(rows: int) -> float:
    """The share of so many labelled rows that is held out for validation: a tenth, or the smallest that is enough."""
    return min((share for share in HELD_OUT if share * rows >= ENOUGH_HELD_OUT), default=HELD_OUT[0])


def epochs_for(rows: int) -> int:
    """Passes over so many rows: 10 for a thousand, 8 for ten thousand, 3 for a million."""
    return min(MOST_EPOCHS, max(1, round(EPOCHS + EPOCHS_PER_DECADE * (6 - math.log10(max(1, rows))))))


def batch_size_for(rows: int) -> int:
    """A power of two: so large that an epoch has about 300 steps, within limits."""
    return min(MOST_BATCH, max(LEAST_BATCH, 1 << round(math.log2(max(1.0, rows / ROWS_PER_BATCH_ROW)))))


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
