from pathlib import Path

import pytest
import torch

from cataloger.model.network import new_classifier
from cataloger.spec import Spec
from cataloger.training.dropout import FastDropout, set_dropout

CATEGORIES = ("A > a", "A > b", "B")


@pytest.fixture(params=["mean", "cls"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> torch.nn.Module:
    return new_classifier(tiny_model, Spec(CATEGORIES, ("title",), 32, request.param, ""))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropped_values_are_as_many_as_asked_for_and_the_others_keep_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    dropout = FastDropout(rate).train()
    values = torch.ones(1_000, 1_001, requires_grad=True)
    kept = dropout(values)
    assert float((kept == 0).float().mean()) == pytest.approx(rate, abs=0.003)
    assert float(kept.mean()) == pytest.approx(1, abs=0.003)
    # No pattern along rows or columns.
    assert float((kept == 0).float().mean(dim=0).std()) == pytest.approx((rate * (1 - rate) / 1_000) ** 0.5, rel=0.15)
    kept.sum().backward()
    torch.testing.assert_close(values.grad, kept.detach())
    assert dropout.eval()(values) is values


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_dropout_is_set_everywhere(model: torch.nn.Module, device: str) -> None:
    """The network stays on the CPU; `device` says how it is to be prepared."""
    set_dropout(model, 0.3, device)
    dropouts = [module for module in model.modules() if isinstance(module, (FastDropout, torch.nn.Dropout))]
    assert len(dropouts) > 4
    assert {module.p for module in dropouts} == {0.3}
    assert {isinstance(module, FastDropout) for module in dropouts} == {device == "cpu"}
    ids = torch.tensor([[101, 2_000, 102]])

    def logits() -> torch.Tensor:
        return model.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # type: ignore[no-any-return]

    torch.manual_seed(1)
    once, again = logits(), logits()
    assert not torch.allclose(once, again)
    torch.manual_seed(1)
    torch.testing.assert_close(logits(), once)


def test_without_dropout_the_network_answers_and_learns_as_before(model: torch.nn.Module) -> None:
    ids = torch.randint(1_000, 2_000, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0

    def answer() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logits = model.train()(input_ids=ids, attention_mask=mask).logits
        logits.square().sum().backward()
        return logits.detach(), [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ]

    before = answer()
    set_dropout(model, 0.0, "cpu")
    torch.testing.assert_close(answer(), before, atol=1e-5, rtol=1e-4)


def test_a_saved_network_knows_nothing_of_how_it_was_trained(model: torch.nn.Module, tmp_path: Path) -> None:
    set_dropout(model, 0.2, "cpu")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert "cataloger_cpu" not in (tmp_path / "config.json").read_text()
