import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cataloger.bundle import INT8, INT8_WEIGHTS, WEIGHTS, digest, read_spec
from cataloger.data.inputs import input_of
from cataloger.errors import ConfigError
from cataloger.infra.storage import locate
from cataloger.model.engines import OpenVino, Torch, load_engine
from cataloger.model.predictor import Predictor
from cataloger.model.quantised import ATTEMPTS, missing_package, quantise
from cataloger.model.registry import fetch_model

pytest.importorskip("nncf")
TITLES = ["Leather belt, brown", "Garden hose 20 m", "煎锅 30cm", "running shoes for women, size 40", "hat"] * 8


def batches(folder: Path) -> list[dict[str, np.ndarray]]:
    given = input_of(read_spec(folder), folder)
    table = pa.table({name: TITLES if name == "title" else pa.nulls(len(TITLES)) for name in given.columns})
    encoded = given.encode(given.read(table).values)
    return [encoded.batch(np.arange(start, start + 8)) for start in range(0, len(TITLES), 8)]


def test_a_network_in_eight_bits_answers_nearly_as_before(bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(bundle, tmp_path / "bundle")
    before = digest(own)
    assert quantise(own, batches(own)) == []
    assert digest(own) != before
    engine = load_engine(own, "cpu", "auto")
    assert engine.name == "OpenVINO int8"
    assert load_engine(own, "cpu", "fp32").name == "OpenVINO f32"
    (batch, *_) = batches(own)
    exact, found = load_engine(own, "cpu", "fp32")(batch).numpy(), engine(batch).numpy()
    assert (exact != found).any()
    assert np.abs(exact - found).max() < 0.1 * np.abs(exact).max()
    assert (exact.argmax(1) == found.argmax(1)).all()
    # Word embeddings are most of this one.
    assert (own / INT8_WEIGHTS).stat().st_size < (own / WEIGHTS).stat().st_size / 3


def test_what_hurts_stays_as_it_is(bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(bundle, tmp_path / "bundle")
    left = quantise(own, batches(own), ATTEMPTS[1])
    assert len(left) == 4  # of each of two layers, what leaves attention and what leaves the wide one
    left = quantise(own, batches(own), ATTEMPTS[2])
    assert len(left) == 10  # and what goes into attention


def test_a_model_that_sees(seeing: Callable[..., Path]) -> None:
    own = seeing("title")
    quantise(own, batches(own))
    engine, exact = load_engine(own, "cpu", "int8"), load_engine(own, "cpu", "fp32")
    (batch, *_) = batches(own)
    assert engine.name == "OpenVINO int8"
    assert np.abs(engine(batch).numpy() - exact(batch).numpy()).max() < 0.2


def test_it_is_fetched_with_the_bundle(bundle: Path, tmp_path: Path, s3: str) -> None:
    own = shutil.copytree(bundle, tmp_path / "bundle")
    quantise(own, batches(own))
    locate(f"{s3}/eight/bundle").write_folder(own, last="config.json")
    assert digest(fetch_model(f"{s3}/eight/bundle").folder) == digest(own)


def test_it_is_for_cpus_with_openvino(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--precision int8: the model has no network in eight bits"):
        load_engine(bundle, "cpu", "int8")
    own = shutil.copytree(bundle, tmp_path / "bundle")
    quantise(own, batches(own))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert isinstance(load_engine(own, "cpu", "auto"), Torch)
    with pytest.raises(ConfigError, match="--precision int8: needs a CPU and the package openvino"):
        load_engine(own, "cpu", "int8")
    assert missing_package() == "openvino"


def test_threads_share_it(bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(bundle, tmp_path / "bundle")
    quantise(own, batches(own))
    predictor = Predictor(own, precision="int8")
    assert isinstance(predictor.engine, OpenVino)
    encoded = predictor.input.encode(pa.array(TITLES, pa.large_string()))
    first, second = predictor.answer(encoded), predictor.answer(encoded)
    assert first.equals(second)
    assert (own / INT8).exists()
