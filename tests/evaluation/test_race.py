from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.errors import CatalogError
from cataloger.evaluation.predictions import About
from cataloger.evaluation.race import TEXTS, sampled_texts


def test_a_model_is_raced_on_the_columns_that_are_named(bundle: Path, labelled: Path) -> None:
    spec, table = read_spec(bundle), pq.read_table(labelled)
    pq.write_table(table, "shop.parquet")
    pq.write_table(table.rename_columns({"title": "name"}), "renamed.parquet")
    shop, renamed = (
        About("model", f"{name}.parquet", "", "id", "category_path", "all", spec.categories, 0.0)
        for name in ("shop", "renamed")
    )
    texts = sampled_texts(shop, spec, None)
    assert TEXTS * 0.9 < len(texts) <= TEXTS
    assert sampled_texts(renamed, spec, ("name", "brand", "description")).equals(texts)
    with pytest.raises(CatalogError, match="no column 'title'.*--text-columns"):
        sampled_texts(renamed, spec, None)
