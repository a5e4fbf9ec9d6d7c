"""New categories without a training: from the command line to a version that answers with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cataloger.adapting.grafting import balance, grow
from cataloger.bundle import read_spec
from cataloger.config import LabelConfig, TrainConfig
from cataloger.labeling.job import label
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.training.job import train
from conftest import published, upload

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]
NEW = ("Electronics > Audio > Over-Ear Headphones", "Grocery > Canned Food > Tuna Chunks")
TEXTS = ("title", "brand", "description")


@pytest.fixture(scope="module")
def known(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample without two of its larger categories."""
    table = pq.read_table(labelled)
    folder = tmp_path_factory.mktemp("known") / "known.parquet"
    pq.write_table(table.filter(pc.invert(pc.is_in(table.column("category_path"), pa.array(NEW)))), folder)
    return folder


@pytest.fixture(scope="module", params=["words", "both"])
def model(
    request: pytest.FixtureRequest,
    known: Path,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    in_process: None,
) -> str:
    words = request.param == "words"
    settings = (
        {"base_model": "none"}
        if words
        else {"base_model": str(tiny_model), "epochs": 3, "learning_rate": 5e-3, "adversarial": 0.0}
    )
    return train(
        TrainConfig(  # type: ignore[arg-type]
            catalog=str(known),
            max_tokens=24,
            experiment="tests",
            model_name=f"extended-{request.param}",
            storage=str(tmp_path_factory.mktemp("checkpoints")),
            **settings,
        )
    ).model_uri


def newcomers(labelled: Path, examples: int) -> pa.Table:
    """So many rows of each new category, or its name alone, as new.parquet; the other rows of them."""
    table = pq.read_table(labelled)
    chosen, others = [], []
    for path in NEW:
        own = table.filter(pc.equal(table.column("category_path"), path))
        chosen.append(own.slice(0, examples).select([*TEXTS, "category_path"]))
        others.append(own.slice(20))
    names = pa.table({"category_path": list(NEW), "title": pa.nulls(2, pa.string())})
    pq.write_table(pa.concat_tables([*chosen, names], promote_options="default"), "new.parquet")
    return pa.concat_tables(others)


@pytest.mark.parametrize("examples", [0, 5])
def test_a_model_knows_new_categories_and_keeps_the_old_ones(
    labelled: Path, known: Path, model: str, job: Job, examples: int
) -> None:
    others = newcomers(labelled, examples)
    code, out, err = job(
        "extend", "--categories", "new.parquet", "--catalog", known, "--model", model, "--model-name", "extended"
    )
    assert code == 0, err
    assert "new categories" in out
    before, now = fetch_model(model), fetch_model("models:/extended@challenger")
    spec = read_spec(now.folder)
    assert spec.categories == tuple(sorted({*read_spec(before.folder).categories, *NEW}))
    said = Tiers(now.folder).label(others).column("category")
    found = pc.mean(pc.equal(said, others.column("category_path"))).as_py()
    assert found > (0.3 if examples else 0.05), "of products that are no example"
    rows = pq.read_table(known)
    same = pc.equal(
        Tiers(now.folder).label(rows).column("category"), Tiers(before.folder).label(rows).column("category")
    )
    assert pc.mean(same).as_py() >= 0.97, "balanced by 700 rows that a tiny model has learnt"
    pq.write_table(others.drop_columns(["category_path"]), "c.parquet")
    label(LabelConfig(catalog="c.parquet", output="labels", model=(str(now.folder),), precision="fp32"))
    assert published().column("category").to_pylist() == said.to_pylist()


def test_the_network_is_a_hugging_face_folder_as_before(labelled: Path, known: Path, model: str, job: Job) -> None:
    if read_spec(fetch_model(model).folder).network is False:
        pytest.skip("words alone have no network")
    from transformers import pipeline

    newcomers(labelled, 5)
    assert (
        job("extend", "--categories", "new.parquet", "--catalog", known, "--model", model, "--model-name", "extended")[
            0
        ]
        == 0
    )
    folder = fetch_model("models:/extended@challenger").folder
    ask = pipeline("text-classification", str(folder), trust_remote_code=True)
    assert {one["label"] for one in ask("tuna chunks", top_k=None)} == set(read_spec(folder).categories)


def test_a_deeper_category_has_a_level_where_nothing_is_trusted(
    labelled: Path, known: Path, model: str, job: Job
) -> None:
    table = pa.table({"category_path": ["Toys > Puzzles > Wooden > For Children"], "title": ["wooden puzzle horse"]})
    pq.write_table(table, "new.parquet")
    code, _, err = job(
        "extend", "--categories", "new.parquet", "--catalog", known, "--model", model, "--model-name", "extended"
    )
    assert code == 0, err
    folder = fetch_model("models:/extended@challenger").folder
    assert len(read_spec(folder).thresholds) == 4
    row = pa.table(
        {"title": ["wooden puzzle horse"], "brand": pa.nulls(1, pa.string()), "description": pa.nulls(1, pa.string())}
    )
    (found,) = Tiers(folder).label(row).to_pylist()
    assert found["category"] == "Toys > Puzzles > Wooden > For Children"
    assert found["trusted_category"] != found["category"]


def test_on_s3(labelled: Path, known: Path, model: str, s3: str, job: Job, working_folder: Path) -> None:
    newcomers(labelled, 3)
    pq.write_table(pq.read_table(known), "known.parquet")
    upload(working_folder, f"{s3}/extend")
    code, _, err = job(
        *("extend", "--categories", f"{s3}/extend/new.parquet", "--catalog", f"{s3}/extend/known.parquet"),
        *("--model", model, "--model-name", "extended-s3"),
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"title": ["x"]}, "needs one column 'category_path'"),
        ({"category_path": ["A >> B"]}, "is no category path"),
        ({"category_path": [["A"]]}, "has lists of categories"),
        ({"category_path": pa.array([], pa.string())}, "has no rows"),
        ({"category_path": ["Home > Kitchen > Salad Bowl"]}, "the model knows 'Home > Kitchen > Salad Bowl' already"),
    ],
)
def test_what_cannot_be_new(columns: dict[str, object], sentence: str, known: Path, model: str, job: Job) -> None:
    pq.write_table(pa.table(columns), "new.parquet")
    code, _, err = job("extend", "--categories", "new.parquet", "--catalog", known, "--model", model)
    assert code == 2, err
    assert sentence in err
    assert "Traceback" not in err


def test_new_columns_take_no_more_than_their_share() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 40))
    label = rng.integers(0, 5, 4_000)
    rows = (centres[label] + rng.normal(size=(4_000, 40)) * 2).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    new = (centres[5] + rng.normal(size=(200, 40)) * 2).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    old = rows @ centres[:5].T.astype(np.float32)
    right = old.argmax(axis=1) == label
    graft = grow(new[:5], np.zeros(5, np.int64), 1, rows[:1_000])
    for share in (0.0, 0.01, 0.1):
        shifted = balance(graft, rows, old, right, share)
        taken = right & (shifted.scores(rows)[:, 0] > old.max(axis=1))
        assert taken.sum() <= share * len(rows)
        assert taken.sum() >= share * len(rows) - 1
    won = balance(graft, rows, old, right, 0.05).scores(new[5:])[:, 0] > (new[5:] @ centres[:5].T).max(axis=1)
    assert won.mean() > 0.3
    same = grow(sparse.csr_matrix(new[:5]), np.zeros(5, np.int64), 1, sparse.csr_matrix(rows[:1_000]))
    assert np.allclose(same.weights, graft.weights, atol=0.05)
