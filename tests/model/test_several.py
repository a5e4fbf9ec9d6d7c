"""The network of tags: the same logits from every engine, whatever else is in the batch; and in other people's hands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cataloger.bundle import read_spec
from cataloger.data.inputs import input_of
from cataloger.data.windows import Windows
from cataloger.errors import ModelError
from cataloger.model import engines
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.predictor import Predictor
from cataloger.model.tiers import Tiers
from cataloger.spec import TAGS, Spec

LONG = "a shoe of red leather with a black sole, made by hand in Porto since nineteen hundred and five, size 36 to 42"
ROWS = {"title": ["a shoe", LONG, None, "hat", "b"], "description": [None, "cup", "x y", LONG, " "]}


@pytest.fixture(params=["mean", "cls"])
def tagger(request: pytest.FixtureRequest, working_folder: Path, tiny_model: Path) -> Path:
    """An untrained bundle that is sure of what it says."""
    spec = Spec(("Brand", "Size"), ("title", "description"), 12, request.param, "none", head=TAGS, label_column="tags")
    torch.manual_seed(0)
    model = new_classifier(tiny_model, spec)
    torch.nn.init.normal_(model.words[0].weight, std=2.0)
    save_bundle(working_folder / "bundle", model, tiny_model, spec)
    return working_folder / "bundle"


def encoded(folder: Path) -> Windows:
    given = input_of(read_spec(folder), folder)
    found: Windows = given.encode(given.read(pa.table(ROWS)).values)
    assert found.counts.max() > 2, "some have several windows"
    return found


def test_every_engine_gives_the_same_logits_whatever_the_batch(tagger: Path) -> None:
    pytest.importorskip("openvino")
    rows = encoded(tagger)
    plain = engines.Torch(tagger, "cpu", torch.float32)

    def by_row(engine: engines.Engine, some: list[int]) -> list[np.ndarray]:
        logits = engine(rows.batch(np.array(some))).numpy().reshape(len(some), -1, 5)
        return [found[: rows.words.lengths[row]] for row, found in zip(some, logits, strict=True)]

    whole = by_row(plain, list(range(5)))
    for engine, tolerance in (
        (plain, 1e-4),
        (engines.OpenVino(tagger, torch.float32), 5e-3),
        (engines.OpenVino(tagger, torch.bfloat16), 0.3),
    ):
        for some in ([0], [4, 1], [4, 3, 2, 1, 0]):
            for row, found in zip(some, by_row(engine, some), strict=True):
                np.testing.assert_allclose(found, whole[row], atol=tolerance, rtol=tolerance)


def test_a_value_is_what_stands_there(tagger: Path) -> None:
    labels = Tiers(tagger).label(pa.table(ROWS))
    found = 0
    for row, tags in enumerate(labels.column("tags").to_pylist()):
        for tag in tags:
            assert ROWS[tag["field"]][row][tag["start"] : tag["end"]] == tag["value"]
            found += 1
    assert found > 5


def test_no_rows_give_no_tags(tagger: Path) -> None:
    assert len(Predictor(tagger).answer(encoded(tagger).slice(0, 0))) == 0
    assert Tiers(tagger).label(pa.table({"title": pa.array([], pa.string()), "description": [None] * 0})).num_rows == 0


def test_windows_of_a_row_do_not_know_its_neighbours(tagger: Path) -> None:
    predictor = Predictor(tagger)
    alone = [predictor.answer(encoded(tagger).slice(row, row + 1)).to_pylist()[0] for row in range(5)]
    for row, (one, other) in enumerate(zip(alone, predictor.answer(encoded(tagger)).to_pylist(), strict=True)):
        for mine, theirs in zip(one["tags"], other["tags"], strict=True):
            assert mine.pop("confidence") == pytest.approx(theirs.pop("confidence"), abs=1e-4), row
            assert mine == theirs


def test_it_works_where_cataloger_is_not_installed(tagger: Path, working_folder: Path) -> None:
    script = """
import json, sys
from transformers import pipeline
tagger = pipeline("token-classification", sys.argv[1], trust_remote_code=True, aggregation_strategy="none", ignore_labels=[])
assert not any(name.startswith("cataloger") for name in sys.modules)
print(json.dumps([[one["word"], one["entity"]] for one in tagger("a shoe of red leather")]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tagger)], cwd=working_folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    said = json.loads(done.stdout.splitlines()[-1])
    given = input_of(read_spec(tagger), tagger)
    rows = given.encode(given.read(pa.table({"title": ["a shoe of red leather"], "description": [None]})).values)
    logits = engines.Torch(tagger, "cpu", torch.float32)(rows.batch(np.arange(1))).reshape(-1, 5)
    names = read_spec(tagger).classes
    assert [entity for _, entity in said] == [names[best] for best in logits.argmax(dim=1).tolist()]


def test_a_network_of_other_names_is_refused(tagger: Path) -> None:
    config = json.loads((tagger / "config.json").read_text())
    config["id2label"] = {"0": "O", "1": "B-Brand", "2": "I-Brand"}
    (tagger / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has 5 categories, the network of config.json has 3"):
        read_spec(tagger)
