"""The explanation job, from the command line."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import write_spec
from cataloger.spec import Spec, Words
from conftest import refused, upload
from linear import CATEGORIES, LABELS, TEXTS, word_model

Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(working_folder: Path) -> Path:
    folder = working_folder / "model"
    folder.mkdir()
    word_model().save(folder)
    write_spec(folder, Spec(CATEGORIES, ("title",), 64, "none", "", words=Words(temperature=0.3)))
    return folder


@pytest.fixture
def catalog(working_folder: Path) -> Path:
    paths = [CATEGORIES[label] for label in LABELS]
    table = pa.table({"id": range(len(TEXTS)), "title": TEXTS, "category_path": paths})
    pq.write_table(table, working_folder / "c.parquet")
    return working_folder / "c.parquet"


def test_products_by_their_id_with_their_neighbours(model: Path, catalog: Path, job: Job) -> None:
    flags = ("--catalog", catalog, "--ids", 6, 0, "--neighbours", catalog)
    code, out, err = job("explain", "--model", model, *flags)
    assert code == 0, err
    assert out.index("6: Tea") < out.index("0: Shoes")
    tea, shoes = out[: out.index("0: Shoes")], out[out.index("0: Shoes") :]
    assert tea.index("tea") < tea.index("labelled products most like it")
    assert "green tea 250g" in tea
    assert "blue running shoes 42" in shoes
    assert "red running shoes" not in shoes.partition("labelled products")[2], "none is its own neighbour"
    page = Path("explanation.html").read_text()
    assert '<mark class="for"' in page
    assert "black tea leaves" not in page.partition("Labelled products")[0], "in pieces"


def test_a_text(model: Path, job: Job) -> None:
    code, out, err = job("explain", "--model", model, "--text", "green <b>shoes</b>", "--output", "why.html")
    assert code == 0, err
    assert "as a page: why.html" in out
    assert "<b>shoes</b>" not in Path("why.html").read_text()


def test_a_text_with_nothing_to_read(model: Path, job: Job) -> None:
    code, out, _ = job("explain", "--model", model, "--text", "  ")
    assert (code, out.count("no text in any of the text columns")) == (0, 1)


@pytest.mark.s3
def test_from_s3(model: Path, catalog: Path, job: Job, s3: str) -> None:
    (catalog.parent / "folder").mkdir()
    catalog.rename(catalog.parent / "folder" / "c.parquet")
    upload(catalog.parent / "folder", f"{s3}/explained")
    flags = ("--catalog", f"{s3}/explained/c.parquet", "--ids", 0, "--output", f"{s3}/explained/why.html")
    code, out, err = job("explain", "--model", model, *flags)
    assert code == 0, err
    assert "0: Shoes" in out


def test_what_cannot_be_explained_is_said(model: Path, catalog: Path, job: Job) -> None:
    def refuse(*flags: object, sentence: str, code: int = 2) -> None:
        refused(job("explain", "--model", model, *flags), sentence, code=code)
        assert not Path("explanation.html").exists()

    refuse(sentence="name either --catalog with --ids, or a --text")
    refuse("--text", "tea", "--catalog", catalog, sentence="name either --catalog with --ids, or a --text")
    refuse("--text", "tea", "--ids", 1, sentence="--ids: names products of --catalog; leave it out beside --text")
    refuse("--catalog", catalog, sentence="--ids: name the products of --catalog to explain")
    refuse("--catalog", catalog, "--ids", "x", 1, sentence="no product has the id x in column 'id'")
    refuse("--catalog", catalog, "--ids", 1, "--text-columns", "name", sentence="no column 'name'")
    refuse("--text", "tea", "--neighbours", "missing.parquet", sentence="catalog missing.parquet: not found")
    refuse("--text", "tea", "--neighbours", catalog, "--label-column", "x", sentence="no column 'x'")
    refused(job("explain", "--model", "models:/none@champion", "--text", "tea"), "none")
