from pathlib import Path

import pyarrow.parquet as pq

from cataloger.config import SampleConfig
from cataloger.data.sample import generate


def test_rows_are_a_function_of_seed_and_row_number(working_folder: Path) -> None:
    generate(SampleConfig(rows=500, output="small", labelled=True))
    generate(SampleConfig(rows=700, output="large", labelled=True))
    generate(SampleConfig(rows=500, output="other", seed=1))
    small, large, other = (pq.read_table(name) for name in ("small", "large", "other"))
    assert large.slice(0, 500).equals(small)
    assert other.column_names == small.column_names[:-1]
    assert not other.column("title").equals(small.column("title"))


def test_the_catalog_is_what_the_docstring_promises(working_folder: Path) -> None:
    generate(SampleConfig(rows=20_000, output="c", labelled=True))
    frame = pq.read_table("c").to_pandas()
    counts = frame["category_path"].value_counts()
    assert len(counts) >= 100
    assert counts.index.str.count(" > ").unique().tolist() == [2]
    assert counts.iloc[0] > 20 * counts.iloc[-1], "a long tail"
    assert frame["id"].is_unique
    chinese = frame["title"].str.contains("[一-鿿]")
    assert 0.08 < chinese.mean() < 0.25
    assert (chinese & frame["title"].str.contains("[a-z]{4}")).any(), "mixed languages"
    assert 0.2 < frame["description"].isna().mean() < 0.4
    assert 0.02 < frame["title"].duplicated().mean() < 0.2, "repeated products"
