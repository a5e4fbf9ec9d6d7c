from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AutoModel, AutoTokenizer, DistilBertConfig, ModernBertConfig, PreTrainedConfig

from cataloger.config import TrainConfig
from cataloger.errors import ConfigError
from cataloger.model.network import new_classifier, without_weights
from cataloger.spec import Spec
from cataloger.training.checks import check_base
from cataloger.training.dropout import set_dropout
from cataloger.training.pretraining import MaskedLanguageModel
from cataloger.training.tuning import (
    adversarial,
    averaged,
    default_learning_rate,
    layers_of,
    layers_of_their_own,
    merged,
    parameter_groups,
)

CATEGORIES = ("A > x", "A > y", "B")


@pytest.fixture(params=["mean", "cls"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> torch.nn.Module:
    return new_classifier(tiny_model, Spec(CATEGORIES, ("title",), 32, request.param, ""))


@pytest.mark.parametrize(("fine_tune", "layers"), [("all", {0, 1}), ("head", set()), ("1", {1}), ("2", {0, 1})])
def test_what_is_not_trained_is_frozen(model: torch.nn.Module, fine_tune: str, layers: set[int]) -> None:
    groups = parameter_groups(model, TrainConfig(fine_tune=fine_tune))
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        named = any(f"layer.{layer}." in name for layer in layers)
        wanted = name.startswith("classifier") or named or fine_tune == "all" or ("pooler" in name and bool(layers))
        assert (id(parameter) in trained) == parameter.requires_grad == wanted, name


def test_rates_fall_layer_by_layer_and_vectors_do_not_decay(model: torch.nn.Module) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, TrainConfig(layer_decay=0.5, learning_rate=1.0, weight_decay=0.1)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            below = 0 if "layer.1" in name or "pooler" in name else 1 if "layer.0" in name else 2
            assert group["peak"] == (10.0 if name.startswith("classifier") else 0.5**below), name
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), name


def test_the_default_rate_falls_with_the_square_of_the_width(model: torch.nn.Module) -> None:
    assert default_learning_rate(model, None) == pytest.approx(3e-4 * (384 / 32) ** 2)
    assert default_learning_rate(model, 128) == pytest.approx(6e-4 * (384 / 32) ** 2)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "shape",
    [
        DistilBertConfig(dim=32, hidden_dim=64, n_layers=3, n_heads=2, vocab_size=99),
        ModernBertConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            vocab_size=99,
            pad_token_id=0,
        ),
    ],
    ids=lambda shape: shape.model_type,
)
def test_encoders_that_name_their_layers_otherwise(tmp_path: Path, shape: PreTrainedConfig, pooling: str) -> None:
    AutoModel.from_config(shape).save_pretrained(tmp_path)
    assert layers_of_their_own(without_weights(tmp_path)) == 3
    model = new_classifier(tmp_path, Spec(CATEGORIES, ("title",), 32, pooling, ""))
    encoder = dict(model.base_model.named_parameters())
    layers = layers_of(model)
    assert set(layers.values()) == {-1, 0, 1, 2, None}
    for name, layer in layers.items():
        inside = name.split(".", 1)[1] in encoder
        assert (layer is None) == (not inside), f"{name} is new"
        assert not inside or (layer == -1) == ("embeddings" in name), name
        assert not inside or "layer" not in name or f".{layer}." in name, name
    set_dropout(model, 0.1, "cpu")
    ids = torch.tensor([[1, 2, 3, 0]])
    model(input_ids=ids, attention_mask=ids > 0).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad.norm() > 0


def test_the_average_follows_the_weights(model: torch.nn.Module) -> None:
    average, (parameter, *_) = averaged(model, 0.9), list(model.parameters())
    for _ in range(3):
        average.update_parameters(model)
    for name, buffer in model.named_buffers():
        assert torch.equal(average.module.get_buffer(name), buffer), "whole numbers are not averaged"
    average, (parameter, *_) = averaged(model, 0.75), list(model.parameters())
    kept = next(average.module.parameters())
    average.update_parameters(model)
    first = parameter.detach().clone()
    torch.testing.assert_close(kept, first)
    with torch.no_grad():
        parameter.add_(1.0)
    average.update_parameters(model)
    torch.testing.assert_close(kept, first + 0.25)


def test_an_adversarial_step_raises_the_loss_and_is_taken_back() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.Embedding(5, 3)
    before = embeddings.weight.detach().clone()

    def loss() -> torch.Tensor:
        return embeddings(torch.tensor([1, 2])).pow(2).sum()

    plain = loss()
    plain.backward()
    with adversarial(embeddings.weight, 0.1):
        assert loss() > plain
        torch.testing.assert_close((embeddings.weight - before).norm(), torch.tensor(0.1))
    torch.testing.assert_close(embeddings.weight.detach(), before)
    embeddings.weight.grad = None
    with adversarial(embeddings.weight, 0.1):  # frozen embeddings have no gradient
        torch.testing.assert_close(embeddings.weight.detach(), before)


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A base model of three layers with the same weights."""
    folder = tmp_path_factory.mktemp("albert")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shape = {"embedding_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = AlbertConfig(num_hidden_layers=3, vocab_size=len(tokenizer), pad_token_id=0, **shape)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("flag", [{"fine_tune": "1"}, {"layer_decay": 0.9}])
def test_what_goes_by_layers_is_refused_where_they_share_their_weights(albert: Path, flag: dict[str, object]) -> None:
    with pytest.raises(
        ConfigError, match=r"^--(fine-tune 1|layer-decay 0\.9): the layers of base model .* share their"
    ):
        check_base(TrainConfig(base_model=str(albert), **flag), albert)  # type: ignore[arg-type]


@pytest.mark.parametrize("fine_tune", ["3", "0", "some"])
def test_a_number_of_layers_is_one_that_there_is(tiny_model: Path, fine_tune: str) -> None:
    with pytest.raises(ConfigError, match="must be all, head, lora, or a number of layers from 1 to 2"):
        check_base(TrainConfig(base_model=str(tiny_model), fine_tune=fine_tune), tiny_model)


def test_a_width_is_that_of_the_model_and_not_of_its_embeddings(albert: Path) -> None:
    model = new_classifier(albert, Spec(CATEGORIES, ("title",), 32, "mean", ""))
    assert default_learning_rate(model, None) == pytest.approx(3e-4 * (384 / 32) ** 2)
    hidden = MaskedLanguageModel(model.base_model)
    assert default_learning_rate(hidden, None) == pytest.approx(3e-4 * (384 / 32) ** 2)
    ids = torch.tensor([[1, 2, 3]])
    assert hidden(ids, torch.ones_like(ids), ids > 1).shape == (2, model.base_model.config.vocab_size)


@pytest.mark.parametrize("fine_tune", ["all", "head", "lora"])
def test_the_rest_is_done_with_shared_layers_as_with_others(albert: Path, fine_tune: str) -> None:
    config = TrainConfig(base_model=str(albert), fine_tune=fine_tune)
    check_base(config, albert)
    model = new_classifier(albert, Spec(CATEGORIES, ("title",), 32, "mean", ""))
    trained = {id(parameter) for group in parameter_groups(model, config) for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert {"classifier.weight", "classifier.bias"} <= names
    if fine_tune == "lora":
        assert sum("lora_A" in name for name in names) == 6, "six linear maps, which all layers share"
        assert all("lora_" in name or name.startswith("classifier") for name in names)
    else:
        assert (len(names) == 2) == (fine_tune == "head")


def test_adapters_start_at_nothing_are_trained_alone_and_merge_into_the_weights(model: torch.nn.Module) -> None:
    ids = torch.tensor([[101, 2_000, 3_000, 102]])
    mask, names = torch.ones_like(ids), set(model.state_dict())
    model.eval()
    before = model(input_ids=ids, attention_mask=mask).logits
    groups = parameter_groups(model, TrainConfig(fine_tune="lora", learning_rate=1.0))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {group["peak"] for group in groups} == {10.0}
    assert all("lora_" in name or name.startswith("classifier") for name in trained)
    assert sum("lora_A" in name for name in trained) == 2 * 6, "six linear maps in each of two layers"
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = model(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(changed, before)
    plain = merged(model)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits, changed, atol=1e-3, rtol=1e-3)
    assert merged(plain) is plain
