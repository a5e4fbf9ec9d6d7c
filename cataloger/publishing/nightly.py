"""What a night of labelling did: figures for MLflow, and a page for whoever is responsible in the morning."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pyarrow.compute as pc

from cataloger.infra import plots
from cataloger.infra.pages import render, svg
from cataloger.infra.storage import Location
from cataloger.publishing import drift, snapshot, summary
from cataloger.publishing.decided import Decided
from cataloger.publishing.doubts import Product
from cataloger.publishing.drift import Drift
from cataloger.publishing.parts import REJECTS, Part, part_name, read_file
from cataloger.publishing.summary import Each, Summary
from cataloger.spec import prefix_of
from cataloger.taxonomy import SEPARATOR, prefix

FLOWS = 20
MATRIX = 12
CHANGED_CATEGORIES = 20
# The tree stays small, and opens fast, for tens of thousands of categories: the largest ones are shown, not too many side by side.
SHOWN_BRANCHES = 600
SHOWN_SIDE_BY_SIDE = 50
SHOWN_LEVELS = 10
SHOWN_NAMES = 100
SHOWN_VALUES = 10
# What the page calls one answer, several, and a product whose answer is another one than before.
WORDS_OF_CATEGORIES = {"one": "category", "many": "categories", "changed": "changed category"}
WORDS_OF_TAGS = {"one": "attribute", "many": "attributes", "changed": "have other tags"}


@dataclass(frozen=True)
class Night:
    """A complete run and, where there was one, the run that was published before it."""

    run: str
    now: Summary
    rejects: Counter[str]
    """Rows by the reason why they have no label."""
    before_run: str | None = None
    before: Summary | None = None
    drift: Drift | None = None
    same_model: bool = True
    others: Mapping[str, "Night"] = field(default_factory=dict)
    """The same for further answers, by their columns."""

    @property
    def metrics(self) -> dict[str, float]:
        """The same names every night, so that their chart in MLflow is the history of the catalog."""
        found = self._own_metrics
        for column, other in self.others.items():
            found |= {prefix_of(column) + name: value for name, value in other._own_metrics.items()}
        return found

    @property
    def _own_metrics(self) -> dict[str, float]:
        found: dict[str, float] = {
            "mean_confidence": self.now.mean_confidence,
            "categories_in_use": len(self.now.counts),
        }
        if self.now.says_review:
            found |= {"review_share": self.now.review_share, "coverage": 1 - self.now.review_share}
        if self.drift:
            found |= {
                "missing_fraction": self.drift.missing,
                "changed_fraction": self.drift.changed,
                "new_text_fraction": self.drift.new_texts,
                "distribution_shift": self.drift.shift,
                "population_stability_index": self.drift.stability,
                "confidence_fall": self.drift.confidence_fall,
                "categories_appeared": len(self.drift.appeared),
                "categories_vanished": len(self.drift.vanished),
            }
        return found


@dataclass(frozen=True)
class Branch:
    """A step of the category paths with all that lies below it: labels now and before, and those that need review."""

    name: str
    labels: int
    review: int
    before: int
    children: tuple["Branch", ...] = ()

    @property
    def sure(self) -> float:
        """The share that is labelled without review."""
        return 1 - self.review / max(1, self.labels)


def look(
    output: Location,
    run: str,
    units: int,
    rows: int,
    parts: Iterable[Part],
    published: dict[str, Any] | None,
    model_digest: str,
    each: Each[Any, Any] = snapshot.each,
) -> Night:
    """Read the labels of a run whose units are all there, and those of the published run, as `summarise` does."""
    folder = snapshot.run_folder(output, run)
    rejects, parts_now = _reasons(folder, parts), snapshot.label_files(folder, units)
    answers: list[str | None] = [None, *summary.further_answers(parts_now)]
    if published is None or published["run"] == run:
        first, *others = (Night(run, summary.summarise(parts_now, None, answer, each), rejects) for answer in answers)
        return replace(first, others=_named(answers, others))
    every = summary.sample_every(max(int(published["rows"]), rows))
    parts_before = snapshot.label_files(snapshot.run_folder(output, published["run"]), published["units"])
    had = [None, *summary.further_answers(parts_before)]
    same_model = published["model_digest"] == model_digest
    nights = []
    for answer in answers:
        now = summary.summarise(parts_now, every, answer, each)
        if answer not in had:
            nights.append(Night(run, now, rejects))
            continue
        before = summary.summarise(parts_before, every, answer, each)
        nights.append(Night(run, now, rejects, published["run"], before, drift.compare(before, now), same_model))
    first, *others = nights
    return replace(first, others=_named(answers, others))


def _named(answers: Sequence[str | None], others: Sequence[Night]) -> dict[str, Night]:
    return {column: other for column, other in zip(answers[1:], others, strict=True) if column}


def page(
    night: Night,
    about: dict[str, Any],
    figures: dict[str, str],
    products: Sequence[Product] | None,
    decided: Decided | None = None,
) -> str:
    """`about` is what the manifest says of the run; `figures` are further ones by name, such as rows/s; `decided` is what people did.

    `products` are those that most need a person's look, None where they could not be looked up.
    """
    now, before = night.now, night.before
    pictures = {"confidence": plots.confidences(now.histogram, before.histogram if before else None)}
    appeared, vanished = Counter[str](), Counter[str]()
    if before and night.drift:
        appeared.update({path: now.counts[path] for path in night.drift.appeared})
        vanished.update({path: before.counts[path] for path in night.drift.vanished})
        shares = {
            path: now.counts[path] / max(1, now.rows) - before.counts[path] / max(1, before.rows)
            for path in {*now.counts, *before.counts}
        }
        changed = sorted(shares, key=lambda path: -abs(shares[path]))[:CHANGED_CATEGORIES]
        bars = [(path, now.counts[path] - before.counts[path]) for path in changed if shares[path]]
        if bars:
            title = "Attributes" if now.tags else "Categories"
            pictures["categories"] = plots.gains(
                bars, "labels more (right) or fewer (left) than before", f"{title} that grew and shrank most"
            )
    return render(
        "night.html",
        night=night,
        about=about,
        figures=figures,
        total=_total(now),
        total_of=_total,
        tree=tree(now, before),
        products=products,
        decided=decided,
        appeared=appeared,
        vanished=vanished,
        shown_names=SHOWN_NAMES,
        flows=night.drift.flows.most_common(FLOWS) if night.drift else [],
        matrix=_matrix(night.drift) if night.drift else None,
        values=commonest_values(now, before),
        words=words_of(now),
        others=[
            (
                column,
                other,
                words_of(other.now),
                tree(other.now, other.before),
                commonest_values(other.now, other.before),
            )
            for column, other in night.others.items()
        ],
        pictures={name: svg(figure) for name, figure in pictures.items()},
    )


def _total(now: Summary) -> int:
    """What the shares of the tree are of: the products where they have tags, else the labels."""
    return now.rows if now.tags else now.counts.total()


def words_of(now: Summary) -> dict[str, str]:
    """What the page calls answers of this kind."""
    return WORDS_OF_TAGS if now.tags else WORDS_OF_CATEGORIES


Values = dict[str, list[tuple[str, int, int]]]


def commonest_values(now: Summary, before: Summary | None) -> dict[str, Values]:
    """(value, how often now, and before) of each name of tags, by the top category of the products, the largest first.

    "" stands for all products where they have no category, or any number.
    """
    sizes: Counter[str] = Counter()
    for (group, *_), count in now.values.items():
        sizes[group] += count
    found: dict[str, Values] = {group: {} for group, _ in sizes.most_common(SHOWN_SIDE_BY_SIDE)}
    for (group, name, value), count in now.values.most_common():
        if group in found and len(found[group].setdefault(name, [])) < SHOWN_VALUES:
            found[group][name].append((value, count, before.values[group, name, value] if before else 0))
    return found


def tree(now: Summary, before: Summary | None = None) -> tuple[Branch, ...]:
    """The categories of a run by their paths, the largest first; the many small ones are counted together."""
    earlier = before.counts if before else Counter[str]()
    below: defaultdict[str, set[str]] = defaultdict(set)
    members: defaultdict[str, list[str]] = defaultdict(list)
    for path in {*now.counts, *earlier}:
        for parent, step in pairwise(["", *_steps(path)]):
            below[parent].add(step)
            members[step].append(path)
    sizes = {step: sum(now.counts[path] for path in paths) for step, paths in members.items()}
    # Of equally large ones those above come first: what is shown has its parents shown.
    largest = sorted(filter(sizes.get, sizes), key=lambda step: (-sizes[step], step.count(SEPARATOR), step))
    rank = {step: number for number, step in enumerate(largest)}

    def branch(name: str, paths: Sequence[str], children: tuple[Branch, ...] = ()) -> Branch:
        labels, review, then = (sum(run[path] for path in paths) for run in (now.counts, now.reviewed, earlier))
        return Branch(name, labels, review, then, children)

    def grow(parent: str) -> tuple[Branch, ...]:
        name = parent.split(SEPARATOR)[-1]
        steps = sorted(below[parent] & rank.keys(), key=lambda step: rank[step])
        kept = [step for step in steps[:SHOWN_SIDE_BY_SIDE] if rank[step] < SHOWN_BRANCHES]
        found = [branch(step.split(SEPARATOR)[-1], members[step], grow(step)) for step in kept]
        if steps and now.counts[parent]:
            found.append(branch(f"{name} itself", [parent]))
        if rest := [path for step in steps[len(kept) :] for path in members[step]]:
            count = sum(now.counts[path] > 0 for path in rest)
            named = f"{count:,}{' more' if kept else ''} {'category' if count == 1 else 'categories'}"
            found.append(branch(f"… and {named}" if kept else named, rest))
        return tuple(found)

    return grow("")


def _steps(path: str) -> Iterable[str]:
    """The path's ancestors from the top down, and itself; what lies too deep to be shown counts for its ancestor."""
    levels = path.split(SEPARATOR)[:SHOWN_LEVELS]
    return (SEPARATOR.join(levels[:depth]) for depth in range(1, len(levels) + 1))


def _matrix(found: Drift) -> tuple[list[str], list[list[int]]] | None:
    """(top categories, products that moved from each to each); the smaller ones are one. None where nothing moved."""
    moves: Counter[tuple[str, str]] = Counter()
    for (old, new), count in found.flows.items():
        moves[prefix(old, 1), prefix(new, 1)] += count
    if not moves:
        return None
    sizes: Counter[str] = Counter()
    for (old, new), count in moves.items():
        sizes[old] += count
        sizes[new] += count
    names = [name for name, _ in sizes.most_common(MATRIX)]
    shown = [*names, "others"] if len(sizes) > len(names) else names
    place = {name: number for number, name in enumerate(names)}
    rows = [[0] * len(shown) for _ in shown]
    for (old, new), count in moves.items():
        rows[place.get(old, len(names))][place.get(new, len(names))] += count
    return shown, rows


def _reasons(folder: Location, parts: Iterable[Part]) -> Counter[str]:
    def count(part: Part) -> dict[str, int]:
        _, file = read_file(folder, f"{REJECTS}/{part_name(part.unit)}")
        counts = pc.value_counts(file.read(columns=["reason"]).column(0)).to_pylist()
        return {pair["values"]: pair["counts"] for pair in counts}

    found: Counter[str] = Counter()
    with ThreadPoolExecutor(16) as pool:
        for counts in pool.map(count, [part for part in parts if part.rejects]):
            found.update(counts)
    return found
