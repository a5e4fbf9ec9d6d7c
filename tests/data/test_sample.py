from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cataloger.config import SampleConfig
from cataloger.data.images import Unreadable, decode
from cataloger.data.sample import generate
from cataloger.spec import Picture


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


def test_pictures_show_the_category(working_folder: Path) -> None:
    generate(SampleConfig(rows=400, output="seen", labelled=True, images=True))
    generate(SampleConfig(rows=500, output="more", labelled=True, images=True))
    table = pq.read_table("seen")
    assert pq.read_table("more").slice(0, 400).equals(table)
    # To the nearest other picture: a form and its colour say more than where it stands.
    by_category: dict[str, list[np.ndarray]] = {}
    statuses = []
    for path, data in zip(*(table.column(name).to_pylist() for name in ("category_path", "image")), strict=True):
        try:
            pixels = decode(data, Picture("image", 16, crop=1.0)) if data else None
            statuses.append("ok" if data else "missing")
        except Unreadable:
            pixels = None
            statuses.append("broken")
        if pixels is not None:
            by_category.setdefault(path, []).append(
                np.histogramdd(pixels.reshape(3, -1).T, 6, [(0, 256)] * 3)[0].ravel()
            )
    assert {"ok", "missing", "broken"} == set(statuses)
    assert statuses.count("ok") > 360
    known = [(path, vector) for path, vectors in by_category.items() if len(vectors) > 1 for vector in vectors]
    hits = [
        path
        == min((other for other in known if other[1] is not vector), key=lambda other: np.abs(other[1] - vector).sum())[
            0
        ]
        for path, vector in known
    ]
    assert np.mean(hits) > 0.3
