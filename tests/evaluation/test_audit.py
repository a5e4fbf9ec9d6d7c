from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleanlab.filter import find_label_issues

from cataloger.errors import CatalogError, ConfigError
from cataloger.evaluation.audit import _check, _check_seen, _known, find_suspects
from cataloger.model.registry import ModelSource
from cataloger.spec import Spec


def mislabelled(rows: int, categories: int, wrong: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(true labels, given labels of which the first `wrong` are wrong, [rows, categories] probabilities of a good model)."""
    rng = np.random.default_rng(0)
    true = rng.integers(categories, size=rows)
    given = true.copy()
    given[:wrong] = (true[:wrong] + 1 + rng.integers(categories - 1, size=wrong)) % categories
    logits = rng.normal(size=(rows, categories))
    logits[np.arange(rows), true] += 6
    probabilities = np.exp(logits)
    return true, given, probabilities / probabilities.sum(axis=1, keepdims=True)


def best(probabilities: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.argsort(-probabilities, axis=1)[:, :count]
    return labels, np.take_along_axis(probabilities, labels, axis=1).astype(np.float32)


def test_wrong_labels_are_found_with_the_right_one_the_worst_first() -> None:
    true, given, probabilities = mislabelled(3_000, 50, 150)
    rows, suggested = find_suspects(given, *best(probabilities, 20))
    assert (rows < 150).sum() > 90, "most of them are found: those that the model is surer of than it usually is"
    assert (rows[:80] < 150).mean() > 0.95, "and stand first"
    assert (suggested == true[rows])[rows < 150].mean() > 0.95
    lead = probabilities[rows, suggested] - probabilities[rows, given[rows]]
    assert (np.diff(lead) < 0.02).all(), "those below the twentieth count as 0"


def test_right_labels_are_left_alone() -> None:
    labels = np.arange(20) % 4
    probabilities = np.full((20, 4), 0.02)
    probabilities[np.arange(20), labels] = 0.94
    rows, _ = find_suspects(labels, *best(probabilities, 3))
    assert len(rows) == 0
    assert len(find_suspects(labels[:0], *best(probabilities[:0], 3))[0]) == 0


def test_it_finds_what_cleanlab_finds() -> None:
    _, given, probabilities = mislabelled(2_000, 30, 150)
    theirs = find_label_issues(given, probabilities, filter_by="confident_learning", n_jobs=1)
    rows, _ = find_suspects(given, *best(probabilities, 20))
    assert set(rows) == set(np.flatnonzero(theirs))


@pytest.mark.parametrize(
    ("starts", "refused"), [((0.0, 0.2, 0.4, 0.6, 0.8), False), ((0.0, 0.1), True), ((0.1, 0.9), True)]
)
def test_models_that_left_out_the_same_rows_are_refused(starts: tuple[float, ...], refused: bool) -> None:
    specs = [
        Spec(("A", "B"), ("title",), 32, "mean", "", test_fraction=0.21 if refused else 0.2, test_start=at)
        for at in starts
    ]
    sources = [ModelSource(Path(), f"models:/m/{number}", None) for number in range(len(specs))]
    if refused:
        with pytest.raises(ConfigError, match="models:/m/0 and models:/m/1 .* listed twice"):
            _check(sources, specs, "another catalog")
    else:
        _check(sources, specs, "another catalog")


@pytest.mark.parametrize(("share", "refused"), [(0.97, True), (0.03, False), (0.0, False), (None, False)])
def test_models_that_saw_the_rows_are_refused_and_such_as_may_have_are_named(
    share: float | None, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    known = [None] * 100 if share is None else [row < 100 * share for row in range(100)]
    labels = pa.table({"true_category": ["A"] * 100 + ["", None] * 100, "seen": pa.array([*known, *[True] * 200])})
    source, spec = ModelSource(Path(), "models:/m/0", None), Spec(("A", "B"), ("title",), 32, "mean", "")
    if refused:
        with pytest.raises(ConfigError, match="models:/m/0 was trained on 97% of these rows"):
            _check_seen(source, spec, labels, {"A": "A"})
    else:
        _check_seen(source, spec, labels, {"A": "A"})
    assert ("may have seen" in caplog.text) == (share is None)


def test_rows_with_a_category_that_the_models_know_are_looked_at_by_its_label() -> None:
    written = pa.chunked_array([["B", None], ["", " A", "C", "A"]])
    rows = pa.table({"id": np.arange(6), "true_category": written})
    found, labels = _known(
        rows, {"B": "B", " A": "A", "A": "A", "C": "C"}, Spec(("A", "B"), ("title",), 32, "mean", "")
    )
    assert found.column("id").to_pylist() == [0, 3, 5]
    assert labels.tolist() == [1, 0, 0]
    with pytest.raises(CatalogError, match="no row to audit"):
        _known(rows.slice(1, 2), {"B": "B"}, Spec(("A", "B"), ("title",), 32, "mean", ""))


@pytest.mark.parametrize(("other", "what"), [((("A", "B"), ("name",)), "read"), ((("A", "C"), ("title",)), "know")])
def test_models_that_do_not_agree_are_refused(other: tuple[tuple[str, ...], tuple[str, ...]], what: str) -> None:
    one, two = (Spec(*asked, 32, "mean", "", 0.2, at) for asked, at in (((("A", "B"), ("title",)), 0.0), (other, 0.2)))
    sources = [ModelSource(Path(), f"models:/m/{number}", None) for number in (0, 1)]
    with pytest.raises(ConfigError, match=f"models:/m/0 and models:/m/1 {what} different"):
        _check(sources, [one, two], "another catalog")


@pytest.mark.usefixtures("ray_session")
def test_the_job_writes_the_suspects_that_models_never_saw(
    trained, labelled: Path, job: Callable[..., tuple[int, str, str]]
) -> None:  # type: ignore[no-untyped-def]
    table = pq.read_table(labelled)
    paths = table.column("category_path").to_pylist()
    rng = np.random.default_rng(0)
    wrong = set(rng.choice(len(paths), 200, replace=False).tolist())
    others = sorted(set(paths))
    written = [
        others[(others.index(path) + 7) % len(others)] if row in wrong else path for row, path in enumerate(paths)
    ]
    place = table.schema.get_field_index("category_path")
    pq.write_table(table.set_column(place, "category_path", pa.array(written)), "wrong.parquet")
    code, out, err = job(
        "audit", "--catalog", "wrong.parquet", "--models", trained.model_uri, "--output", "found.parquet"
    )
    assert code == 0, err
    found = pq.read_table("found.parquet")
    assert f"{len(found):,} of" in out
    ids = table.column("id").to_pylist()
    wrong_ids, true = {ids[row] for row in wrong}, dict(zip(ids, paths, strict=True))
    first = found.slice(0, 10).to_pylist()
    assert len(first) == 10
    assert sum(row["id"] in wrong_ids for row in first) >= 8
    assert sum(row["suggested_category"] == true[row["id"]] for row in first) >= 7
    assert all(row["category"] != row["suggested_category"] for row in found.to_pylist())
    looked_at = int(out.split(" rows are probably")[0].split()[-1])
    assert looked_at == pytest.approx(0.2 * len(paths), rel=0.25), "only rows of the model's test side"
    code, _, err = job("audit", "--catalog", "wrong.parquet", "--models", trained.model_uri, "--label-column", "title")
    assert (code, "no row to audit" in err) == (2, True)
