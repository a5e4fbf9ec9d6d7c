"""How tonight's labels differ from the published ones: the last check before they replace them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cataloger.publishing.summary import Summary

# A category without a label counts as half a label, so that the index stays finite.
LEAST_COUNT = 0.5


@dataclass(frozen=True)
class Drift:
    """Shares between 0 and 1.

    `missing`: of the products that were labelled before, those that are not, or are on several rows now where they had one.
    `changed`: of the products in both runs, those in another category; `new_texts`: those with another text. `shift`: total
    variation distance between the category distributions, that is the share of labels that would have to move to make them
    equal; `stability`: their population stability index, the sum of (now - before) ln(now / before) (Siddiqi 2006, chapter 9).
    `confidence_fall`: mean confidence before minus now. `flows`: products by (category before, category now).
    """

    every: int
    """One in so many products was looked at."""
    known: int
    """Products of the sample that were labelled before."""
    lost: int
    """Those of them that are missing now."""
    compared: int
    changed: float
    new_texts: float
    shift: float
    stability: float
    confidence_fall: float
    flows: Counter[tuple[str, str]]
    appeared: tuple[str, ...]
    """Categories that had no label before."""
    vanished: tuple[str, ...]

    @property
    def missing(self) -> float:
        return self.lost / max(1, self.known)

    @property
    def worst(self) -> float:
        """The largest of changed, shift and confidence_fall, to be held against a limit."""
        return max(self.changed, self.shift, self.confidence_fall)

    def __str__(self) -> str:
        flows = "; ".join(f"{before} → {now} ({count:,})" for (before, now), count in self.flows.most_common(5))
        return (
            f"{self.missing:.1%} of {self.known:,} products are missing, {self.changed:.1%} of {self.compared:,} compared products "
            f"changed their label, the distribution of labels shifted by {self.shift:.1%}, mean confidence fell by "
            f"{self.confidence_fall:.3f}" + (f"; most moved: {flows}" if flows else "")
        )


def compare(before: Summary, now: Summary) -> Drift:
    """Both with the same sample of products."""
    both = before.labels.merge(now.labels, on="id", suffixes=("_before", "_now"))
    there = np.union1d(now.labels["id"].to_numpy(np.uint64), now.repeated)
    lost = len(before.labels) - len(both) + int((~np.isin(before.repeated, there)).sum())
    moved = both[both["category_before"] != both["category_now"]]
    categories = sorted({*before.counts, *now.counts})
    old, new = (np.array([run.counts[path] for path in categories], float) for run in (before, now))
    empty = not old.sum() or not new.sum()
    p, q = (np.maximum(counts, LEAST_COUNT) / max(1.0, counts.sum()) for counts in (old, new))
    return Drift(
        every=before.every,
        known=len(before.labels) + len(before.repeated),
        lost=lost,
        compared=len(both),
        changed=len(moved) / max(1, len(both)),
        new_texts=float((both["text_before"] != both["text_now"]).mean()) if len(both) else 0.0,
        shift=0.0 if empty else float(np.abs(old / old.sum() - new / new.sum()).sum() / 2),
        stability=0.0 if empty else float(((q - p) * np.log(q / p)).sum()),
        confidence_fall=0.0 if empty else before.mean_confidence - now.mean_confidence,
        # Sets of tags are nearly as many as products are.
        flows=Counter() if now.tags else Counter(zip(moved["category_before"], moved["category_now"], strict=True)),
        appeared=tuple(path for path, count in zip(categories, old, strict=True) if not count),
        vanished=tuple(path for path, count in zip(categories, new, strict=True) if not count),
    )
