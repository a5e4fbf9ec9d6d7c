from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.data.inputs import input_of
from cataloger.data.units import plan_units
from cataloger.errors import CatalogError
from cataloger.evaluation import race
from cataloger.evaluation.predictions import About
from cataloger.evaluation.race import TEXTS, sampled_rows
from cataloger.labeling.predict import SAMPLED_SPANS, SPAN_ROWS, _spans


def test_a_model_is_raced_on_the_columns_that_are_named(bundle: Path, labelled: Path) -> None:
    spec, table = read_spec(bundle), pq.read_table(labelled)
    pq.write_table(table, "shop.parquet")
    pq.write_table(table.rename_columns({"title": "name"}), "renamed.parquet")
    shop, renamed = (
        About("model", f"{name}.parquet", "", "id", "category_path", "all", spec.categories, 0.0)
        for name in ("shop", "renamed")
    )
    other = spec.reading(("name", "brand", "description"), None)
    ((rows, base),) = sampled_rows(shop, [spec])
    assert TEXTS * 0.9 < len(rows) <= TEXTS
    texts = input_of(spec, bundle).read(rows).values
    assert base == str(Path.cwd())
    assert input_of(other, bundle).read(sampled_rows(renamed, [other])[0][0]).values.equals(texts)
    with pytest.raises(CatalogError, match="no column 'title'.*--text-columns"):
        sampled_rows(renamed, [spec])


def test_every_model_is_timed_on_the_same_rows(bundle: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit of one that sees is shorter."""
    spec = read_spec(bundle)
    shop = About("model", str(labelled), "", "id", "category_path", "all", spec.categories, 0.0)
    cut = iter((60, 23))
    monkeypatch.setattr(race, "plan_units", lambda catalog: plan_units(catalog, unit_rows=next(cut)))
    (first, _), (second, _) = sampled_rows(shop, [spec, spec])
    assert first.equals(second)
    assert len(first) == 23


@pytest.mark.parametrize("rows", [1, 10**6, 10**7 + 1])
def test_a_sample_is_taken_from_the_same_rows_whatever_a_unit_is(rows: int) -> None:
    spans = _spans(rows)
    assert all(first < end for first, end in spans)
    assert all(end <= first for (_, end), (first, _) in pairwise(spans))
    assert (spans[0][0], spans[-1][1]) == (0, rows)
    assert sum(end - first for first, end in spans) == min(rows, SAMPLED_SPANS * SPAN_ROWS)
