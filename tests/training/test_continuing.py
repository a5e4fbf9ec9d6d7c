"""A training that goes on from a trained model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.data.batching import Ragged, Tokens
from cataloger.data.text import load_tokenizer, tokenize
from cataloger.errors import ConfigError
from cataloger.infra.storage import locate
from cataloger.model.network import new_classifier
from cataloger.model.registry import fetch_model
from cataloger.spec import MANY_CATEGORIES, Spec
from cataloger.training.examples import Examples
from cataloger.training.job import train
from cataloger.training.plan import plan
from cataloger.training.remembering import Remembering
from cataloger.training.stages import Machine

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


def test_rows_that_it_has_learnt_from_do_not_judge_unnoticed(
    trained: Any, tomorrow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = read_spec(fetch_model(trained.model_uri).folder)
    same = {"test_fraction": spec.test_fraction, "test_start": spec.test_start, "group_column": spec.group_column}
    planned = plan(settings(tomorrow, trained.model_uri, **same))
    assert "another split" not in caplog.text
    assert planned.seen_before, "a model has seen what the one that it came from saw"
    assert len(planned.seen_before.keys) > 100
    plan(settings(tomorrow, trained.model_uri, **{**same, "test_fraction": 0.5}))
    assert "was trained with another split (--test-fraction)" in caplog.text
    plan(settings(tomorrow, trained.model_uri, **same, validation_fraction=0.9))
    assert "(--validation-fraction)" in caplog.text


@pytest.mark.s3
def test_a_bundle_in_a_store_is_gone_on_with(trained: Any, tomorrow: Path, s3: str) -> None:
    place = locate(f"{s3}/bundles/shop")
    place.write_folder(fetch_model(trained.model_uri).folder, last="config.json")
    planned = plan(settings(tomorrow, place.uri))
    assert planned.goes_on_from == place.uri


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


def test_what_it_gets_right_is_learnt_again_in_part(trained: Any, tomorrow: Path) -> None:
    result = train(settings(tomorrow, trained.model_uri, keep_old=0.25, storage="kept"))
    run = mlflow.get_run(result.run_id).data
    new, again = run.metrics["new_rows"], run.metrics["old_rows"]
    rows = len(pq.read_table(tomorrow))
    assert 50 < new < 0.9 * rows - 100, "sixty rakes are new, and much else that so small a network does not know"
    assert again == pytest.approx((0.9 * rows - new) / 4, rel=0.2)
    assert run.tags["goes_on_from"] == "tiny-mean/1"
    everything = train(settings(tomorrow, trained.model_uri, keep_old=1.0, storage="kept"))
    assert mlflow.get_run(everything.run_id).data.metrics["old_rows"] == pytest.approx(4 * again, rel=0.02)
    # How much of it so small a network keeps is luck; docs/quality.md has what a larger one does.
    assert min(result.metrics["val_network_accuracy"], everything.metrics["val_network_accuracy"]) > 0.05, (
        "of 111 categories"
    )


def remembering(
    base: Path, keep_old: float, head: str = "one", machine: Machine | None = None, known: Sequence[int] = (0, 3)
) -> Remembering:
    """A network that says Tea of everything, and knows nothing of Boots and Hats; thirty rows of tea, ten of boots."""
    spec = Spec(("Food > Tea", "Shoes > Boots", "Shoes > Hats", "Food > Salt"), ("title",), 32, "mean", "")
    spec = spec if head == "one" else Spec(spec.categories, ("title",), 32, "mean", "", head=MANY_CATEGORIES)
    network = new_classifier(base, spec)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([2.0, 9.0, -2.0, -1.0]))
    tokens = Tokens.from_arrow(tokenize(load_tokenizer(base, 32), pa.array([f"product {i}" for i in range(40)])))
    rows = Examples(tokens, Ragged(np.repeat([0, 1], [30, 10]).astype(np.int32), np.arange(41)))
    config = TrainConfig(epochs=2, keep_old=keep_old, adversarial=0.0)
    machine = machine or Machine(torch.device("cpu"), False)
    stage = Remembering(config, spec, network, (rows, rows, rows.take(np.arange(0))), base, machine, None, known)
    stage.entered()
    return stage


@pytest.mark.parametrize("head", ["one", "many"])
def test_a_row_is_old_where_the_network_gets_it_right(tiny_model: Path, head: str) -> None:
    stage = remembering(tiny_model, 0.5, head)
    assert stage.right.tolist() == [True] * 30 + [False] * 10, (
        "what it says of a category that is new counts for nothing"
    )
    assert stage.prepare_epoch([0, 0, 0]) == {"new_rows": 10, "old_rows": 15}
    _, first = stage.begin_epoch(np.random.default_rng(0))
    _, second = stage.begin_epoch(np.random.default_rng(1))
    assert set(range(30, 40)) < set(first)
    assert len(set(first)) == len(first) == 25
    assert set(first) != set(second), "each epoch draws anew"
    assert not stage.shares[30:].any(), "what it gets wrong it does not teach"
    assert set(stage.taught[0].tolist()) == {0, 3}
    torch.testing.assert_close(stage.shares[0].max(), torch.sigmoid(torch.tensor(2.0 if head == "many" else 3.0)))
    # The bias towards what is new, as it begins, is an error of these rows by both teachers; only boots want it.
    losses = stage.losses(stage.network, np.arange(40)).detach()
    assert losses.isfinite().all()
    assert losses[:30].min() > losses[30:].max()


def test_a_network_that_knows_none_of_the_categories_gets_none_right(tiny_model: Path) -> None:
    stage = remembering(tiny_model, 0.5, known=[])
    assert not stage.right.any()
    assert stage.prepare_epoch([0, 0, 0]) == {"new_rows": 40, "old_rows": 0}
    assert stage.losses(stage.network, np.arange(8)).isfinite().all()


def test_every_rank_knows_what_the_others_were_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = remembering(tiny_model, 0.5)
    parts: list[Any] = []
    for rank in (0, 1):
        monkeypatch.setattr(
            "torch.distributed.all_gather_object",
            lambda into, mine: parts.append(mine) or into.__setitem__(slice(None), [mine, parts[0]]),
        )
        monkeypatch.setattr("cataloger.training.remembering.TOKENS_PER_BATCH", 32)
        found = remembering(tiny_model, 0.5, machine=Machine(torch.device("cpu"), False, rank, 2))
    assert found.right.tolist() == alone.right.tolist()
    assert not parts[0][2][:30].all(), "each had asked about a half"
    torch.testing.assert_close(found.shares, alone.shares)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"keep_old": 0.5, "base_model": "minilm"}, "--keep-old: is for going on from a trained model"),
        ({"keep_old": 1.5}, "--keep-old 1.5: must be from 0 to 1"),
        ({"keep_old": 0.5, "long_tail": "sampling"}, "leave it out with --long-tail sampling"),
        ({"keep_old": 0.5, "pseudo_labels": 0.9}, "leave it out with --pseudo-labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept(trained: Any, tomorrow: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(TrainConfig(**{"catalog": str(tomorrow), "base_model": trained.model_uri, "max_tokens": 32} | more))
