"""A training that goes on from a trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.errors import ConfigError
from cataloger.model.registry import fetch_model
from cataloger.training.job import train
from cataloger.training.plan import plan

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tomorrow(labelled: Path, working_folder: Path) -> Path:
    """The sample with a category more, and one less."""
    table = pq.read_table(labelled)
    paths = table.column("category_path").to_pylist()
    gone, new = sorted(set(paths))[0], ["Garden > Tools > Rake"] * 60
    kept = table.filter(pa.array([path != gone for path in paths]))
    rakes = kept.slice(0, 60)
    rakes = rakes.set_column(
        rakes.column_names.index("title"), "title", pa.array([f"garden rake {i}" for i in range(60)])
    )
    rakes = rakes.set_column(rakes.column_names.index("category_path"), "category_path", pa.array(new))
    pq.write_table(pa.concat_tables([kept, rakes.cast(kept.schema)]), "tomorrow.parquet")
    return working_folder / "tomorrow.parquet"


def settings(catalog: Path, base: str, **more: Any) -> TrainConfig:
    return TrainConfig(
        catalog=str(catalog), base_model=base, batch_size=16, learning_rate=5e-3, max_tokens=32, adversarial=0.0, epochs=1,
        experiment="tests", model_name="continued", **more,
    )  # fmt: skip


def test_what_is_known_of_old_categories_is_kept(trained: Any, tomorrow: Path, tiny_model: Path) -> None:
    begun = train(settings(tomorrow, str(tiny_model)))
    gone_on = train(settings(tomorrow, trained.model_uri))
    assert "Garden > Tools > Rake" in read_spec(fetch_model(gone_on.model_uri).folder).categories
    assert gone_on.metrics["val_network_accuracy"] > begun.metrics["val_network_accuracy"] + 0.05, (
        "after one epoch each"
    )
    # A bundle on disk will do as well; without a word, it takes a third of the epochs.
    folder = fetch_model(trained.model_uri).folder
    config = plan(TrainConfig(catalog=str(tomorrow), base_model=str(folder), max_tokens=32)).config
    assert config.epochs == 3
    assert plan(TrainConfig(catalog=str(tomorrow), base_model=str(tiny_model), max_tokens=32)).config.epochs == 10


def test_models_that_cannot_be_gone_on_with(
    labelled: Path, tomorrow: Path, seeing: Callable[..., Path], job: Job
) -> None:
    words = train(TrainConfig(catalog=str(labelled), base_model="none", experiment="tests", model_name="words-only"))
    with pytest.raises(ConfigError, match="has no network to go on with"):
        plan(settings(tomorrow, words.model_uri))
    with pytest.raises(ConfigError, match="sees pictures"):
        plan(settings(tomorrow, str(seeing("title"))))
    code, _, err = job("train", "--catalog", tomorrow, "--base-model", "models:/nobody@champion")
    assert (code, "Traceback" in err) == (2, False), err
    assert "nobody" in err
