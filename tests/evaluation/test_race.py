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
