"""Results as terminal tables."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from cataloger.adapting.migrate import Made, Moved
    from cataloger.compression.job import Compressed
    from cataloger.curation.answers import Imported
    from cataloger.curation.review import Exported
    from cataloger.evaluation.comparison import Comparison, Pair
    from cataloger.evaluation.fairness import Fairness
    from cataloger.evaluation.report import Evaluation
    from cataloger.explaining.job import Explained
    from cataloger.heads.metrics import Scores
    from cataloger.publishing.decided import Decided
    from cataloger.training.sweep import SweepResult

SHOWN_GROUPS = 20


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> None:
    """A table; rows whose mark is true are bold. Text columns left, the others as they come."""
    table = Table(header_style="")
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style="bold" if number < len(marked) and marked[number] else "")
    console = Console()
    # A pipe or a log file has no width of its own: leave room for long paths.
    console = console if console.is_terminal else Console(width=160)
    console.print(f"\n{title}", style="bold", highlight=False, markup=False)
    console.print(table)


def show_rules(decided: "Decided") -> None:
    """What each rule did."""
    if decided.rules:
        rows = [
            (rule.name, rule.action, f"{rule.matched:,}", f"{rule.decided:,}", f"{rule.conflicts:,}", rule.said)
            for rule in decided.rules
        ]
        show("rules", ("rule", "", "matched", "decided", "the model differs", ""), rows)


def show_map(found: "Made") -> None:
    """What becomes of the largest old categories."""
    rows = [
        (
            row.old,
            f"{row.products:,}",
            row.kind,
            row.target
            or ", ".join(f"{path} ({share:.0%})" for path, share in row.targets[:3]) + ", …" * (len(row.targets) > 3),
            f"{row.confidence:.0%}",
        )
        for row in found.rows[:SHOWN_GROUPS]
    ]
    some = f", {SHOWN_GROUPS} of {len(found.rows):,}" if len(found.rows) > SHOWN_GROUPS else ""
    show(f"old categories by size{some}", ("old category", "products", "", "becomes", "confidence"), rows)
    kinds = [(kind, f"{count:,}") for kind, count in Counter(row.kind for row in found.rows).most_common()]
    show(f"map in {found.output}, as a page in map.html", ("", "categories"), kinds)


def show_moved(found: "Moved") -> None:
    """What was published by a map."""
    rows = [
        ("labelled", f"{found.labelled:,}"),
        ("rejected", f"{found.rejects:,}"),
        ("told apart one by one", f"{found.apart:,}"),
        ("need review", f"{found.needs_review:,}"),
        *((f"categories: {kind}", f"{count:,}") for kind, count in found.kinds.most_common()),
    ]
    show(f"{found.output}/run={found.run}", ("published in the new tree", ""), rows)


def show_queue(found: "Exported") -> None:
    """What is asked."""
    rows = [
        ("products to ask about", f"{found.asked:,}"),
        ("labels that they were chosen from", f"{found.seen:,}"),
        ("products with the same texts", f"{found.alike:,}"),
        ("mean confidence of their labels", f"{found.unsure:.3f}"),
        *((path, f"{count:,}") for path, count in found.categories),
    ]
    show(f"queue {found.queue} in {found.output}", ("", "products"), rows)


def show_import(found: "Imported") -> None:
    """What was answered, and how far people agree."""
    rows = [
        ("new answers", f"{found.new:,}"),
        ("answers that were changed", f"{found.changed:,}"),
        ("answers that were there already", f"{found.known:,}"),
        ("products with a correction", f"{found.products:,}"),
        ("products on which people are undecided", f"{len(found.undecided):,}"),
    ]
    show(f"corrections in {found.output}", ("", ""), rows)
    if found.undecided:
        print(
            f"undecided: {', '.join(found.undecided[:SHOWN_GROUPS])}{', …' if len(found.undecided) > SHOWN_GROUPS else ''}"
        )
    if found.agreements:
        pairs = [
            (
                " and ".join(who or "nobody named" for who in pair.people),
                f"{pair.products:,}",
                f"{pair.agreed:.1%}",
                "" if pair.kappa is None else f"{pair.kappa:.2f}",
            )
            for pair in found.agreements[:SHOWN_GROUPS]
        ]
        show("agreement", ("people", "products", "the same answer", "Cohen's kappa"), pairs)


def show_explanation(product: "Explained") -> None:
    """The words of a product by their weight, for each of its categories; then the products that are like it."""
    who = product.id or "the text"
    if not product.explanations:
        print(f"\n{who} has no category: {product.reason}")
    for one in product.explanations:
        rival = f", rather than {one.runner_up}" if one.runner_up else ""
        rows = [
            (word.text, f"{word.weight:+.2f}", f"{word.confidence_without:.1%}")
            for word in sorted(one.words, key=lambda word: -word.weight)
        ]
        title = f"{who}: {one.category} ({one.confidence:.1%}){rival}"
        show(title, ("word", "weight", "confidence without it"), rows)
    if product.neighbours:
        rows = [(near.text, " + ".join(near.categories), f"{near.likeness:.2f}") for near in product.neighbours]
        show("labelled products most like it", ("product", "category", "likeness"), rows)


def show_evaluation(result: "Evaluation") -> None:
    """Scores by level, then those of the whole path; of tags, by what of them is right."""
    for one in (result, *result.others):
        if one.places:
            _show_tags(one, one.places)
        else:
            _show_scores(one)
    for column in result.groups:
        _show_groups(column)


def _show_groups(found: "Fairness") -> None:
    """The worst first."""
    shown = sorted(found.groups, key=lambda group: group.figures["accuracy"].value)[:SHOWN_GROUPS]
    rows = [
        (
            group.name,
            f"{group.rows:,}",
            *(
                f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
                for figure in list(group.figures.values())[:2]
            ),
            group.verdict,
        )
        for group in shown
    ]
    few = found.unjudged[0]
    left = f"; {few:,} {'group is' if few == 1 else 'groups are'} not judged" if few else ""
    some = f", {SHOWN_GROUPS} of {len(found.groups)}" if len(found.groups) > SHOWN_GROUPS else ""
    title = f"products by {found.column}, the worst first{some}{left}"
    show(title, (found.column, "products", "accuracy", "needs review", "against all others"), rows)


def _show_scores(result: "Evaluation") -> None:
    rows = [
        (f"level {number}", f"{level.accuracy:.4f}", f"{level.weighted_f1:.4f}", f"{level.macro_f1:.4f}")
        for number, level in enumerate(result.levels, 1)
    ]
    rows.append(("mean over levels", "", f"{result.mean_weighted_f1:.4f}", ""))
    rows.append(("hierarchical F1", "", f"{result.hierarchical_f1:.4f}", ""))
    several = result.answer == "categories"
    if several:
        rows.append(("micro F1", "", f"{result.overall.micro_f1:.4f}", ""))
        rows.append(("F1 by product, mean", "", f"{result.overall.example_f1:.4f}", ""))
    rows.append(("calibration error", f"{result.calibration_error:.4f}", "", ""))
    rows.append(("coverage at 95% precision", f"{result.coverage_at_95:.4f}", "", ""))
    accuracy = "all right" if several else "accuracy"
    show(f"{result.title} on {result.rows:,} products", ("", accuracy, "weighted F1", "macro F1"), rows)


def _show_tags(result: "Evaluation", places: "Scores") -> None:
    names = result.levels[0]
    rows = [
        ("names", f"{names.micro_f1:.4f}", f"{names.macro_f1:.4f}", f"{names.accuracy:.4f}"),
        ("values", f"{result.value_f1:.4f}", "", f"{result.overall.accuracy:.4f}"),
        ("spans", f"{places.micro_f1:.4f}", "", f"{places.accuracy:.4f}"),
    ]
    show(f"{result.title} on {result.rows:,} products", ("", "F1", "macro F1", "products all right"), rows)


def show_comparison(result: "Comparison", page: str) -> None:
    """What differs between the runs, then each pair on the same rows, then the decision."""
    differing = [row for row in result.rows if row.differs]
    if differing:
        show("what differs", ("", *result.names), [(f"{row.kind} {row.name}", *row.values) for row in differing])
    for pair in result.pairs:
        _show_pair(pair)
    if result.decision:
        first, *others = result.decision.reasons
        if others:
            show(first, ("",), [(reason,) for reason in others])
        else:
            print(f"\n{first}")
    if result.pairs:
        print(f"\nWith pictures and examples: {page}")


def _show_pair(pair: "Pair") -> None:
    _show_differences(f"{pair.second} against {pair.first} on {pair.rows:,} products", pair)
    for other in pair.others:
        _show_differences(f"{other.answer}: {other.second} against {other.first} on {other.rows:,} products", other)
    only = pair.mcnemar
    print(f"right by one only: {only.only_first:,} before, {only.only_second:,} now; McNemar p = {only.p_value:.3g}")
    for sentence in pair.left_out:
        print(sentence)
    parts = [
        (
            s.group,
            s.accuracy.name,
            f"{s.rows:,}",
            f"{s.accuracy.first:.1%}",
            f"{s.accuracy.second:.1%}",
            "< 0.001" if s.p_value < 0.001 else f"{s.p_value:.3f}",
        )
        for s in pair.slices
    ]
    show("accuracy by part", ("", "", "products", "before", "now", "p"), parts)
    changes = [
        (change.category, f"{change.rows:,}", f"{change.first:,}", f"{change.second:,}", f"{change.by:+,}")
        for change in (*pair.winners[:5], *reversed(pair.losers[:5]))
    ]
    show("categories that gained and lost most", ("", "products", "right before", "now", "won"), changes)
    if pair.effect:
        effect = pair.effect
        flows = [(flow.before, flow.after, f"{flow.products:,}") for flow in effect.flows[:5]]
        show(
            f"{effect.changed:.1%} of {effect.products:,} products of {effect.catalog} would change category; "
            f"{effect.review_after:.1%} would need review, now {effect.review_before:.1%}",
            ("from", "to", "products"),
            flows,
        )


def _show_differences(title: str, pair: "Pair") -> None:
    rows = [
        (d.title, f"{d.first:.4f}", f"{d.second:.4f}", f"{d.by:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", d.verdict)
        for d in pair.differences
    ]
    columns = ("", "before", "now", "difference", "95% interval", "")
    show(title, columns, rows, [d.better or d.worse for d in pair.differences])


def show_sweep(result: "SweepResult") -> None:
    """The trials, the best first."""
    rows = [
        (
            ", ".join(f"{name} {value}" for name, value in trial.settings.items()),
            str(trial.epochs),
            f"{trial.score:.4f}",
            trial.state,
        )
        for trial in result.trials
    ]
    show(f"the best is {result.model_uri} (MLflow run {result.run_id})", ("trial", "epochs", "validation F1", ""), rows)


def show_compressed(result: "Compressed") -> None:
    """The model as it was, beside what was made of it."""
    before, after = result.before, result.after
    rows = [
        ("megabytes", f"{before.megabytes:,.0f}", f"{after.megabytes:,.0f}"),
        ("texts per second", f"{before.texts_per_second:,.0f}", f"{after.texts_per_second:,.0f}"),
        ("needs review", f"{before.needs_review:.1%}", f"{after.needs_review:.1%}"),
    ]
    if before.accuracy is not None and after.accuracy is not None:
        rows.insert(2, ("accuracy", f"{before.accuracy:.4f}", f"{after.accuracy:.4f}"))
    title = f"{result.model_uri}: {', '.join(result.done)}; the same answer to {result.agreement:.2%} of {result.rows:,} products"
    show(title, ("", "before", "now"), rows)
