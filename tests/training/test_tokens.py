import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cataloger.bundle import network_shape
from cataloger.config import TrainConfig
from cataloger.data.catalog import open_catalog
from cataloger.data.text import load_tokenizer
from cataloger.data.texts import TextInput
from cataloger.infra.storage import locate
from cataloger.training import tokens
from cataloger.training.job import train

pytestmark = pytest.mark.usefixtures("ray_session")


def test_every_token_of_every_text_is_counted(tiny_model: Path, write: Callable[..., Path]) -> None:
    titles = ["leather belt", None, "belt of steel", "steel"]
    catalog = open_catalog(str(write("c.parquet", id=[1, 2, 3, 4], title=titles)), "id", ("title",))
    found = tokens.used_tokens(catalog, ("title",), functools.partial(TextInput, tiny_model, ("title",), 16), 30_522)
    tokenizer = load_tokenizer(tiny_model, 16)
    assert set(np.flatnonzero(found)) == {number for title in titles if title for number in tokenizer.encode(title).ids}


def test_small_vocabularies_are_trained_as_they_are(tiny_model: Path, labelled: Path, tmp_path: Path) -> None:
    config = TrainConfig(catalog=str(labelled), base_model=str(tiny_model))
    catalog = open_catalog(str(labelled), "id", config.text_columns)
    assert tokens.smaller_base(config, [catalog], locate(str(tmp_path / "base"))) == str(tiny_model)


def test_of_large_ones_a_training_takes_what_it_needs(
    tiny_model: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cataloger.model.registry import fetch_model

    monkeypatch.setattr(tokens, "MOST_TOKENS", 10_000)
    found = train(
        TrainConfig(
            catalog=str(labelled),
            base_model=str(tiny_model),
            epochs=1,
            adversarial=0.0,
            max_tokens=16,
            storage=str(tmp_path),
        )
    )
    folder = fetch_model(found.model_uri).folder
    assert 4_000 < network_shape(folder)[1] < 10_000
    assert load_tokenizer(folder, 16).get_vocab_size() == network_shape(folder)[1]
