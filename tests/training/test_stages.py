from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cataloger.config import LongTail, TrainConfig
from cataloger.data.batching import IntArray, Ragged, Tokens
from cataloger.data.text import load_tokenizer, mask_token, tokenize
from cataloger.heads.losses import Loss
from cataloger.model.network import new_classifier
from cataloger.spec import MANY_CATEGORIES, Spec
from cataloger.taxonomy import Taxonomy
from cataloger.training.examples import Examples
from cataloger.training.pretraining import MaskedWords
from cataloger.training.stages import FineTuning, Machine

TREE = Taxonomy.from_paths(["Food > Tea", "Shoes > Boots"])
SPEC = Spec(TREE.categories, ("title",), 32, "mean", "")
MACHINE = Machine(torch.device("cpu"), False)


def examples(base: Path, count: int, label: int) -> Examples:
    texts = [f"{'green tea' if i % 2 else 'leather boots with laces'} number {i}" for i in range(count)]
    tokens = Tokens.from_arrow(tokenize(load_tokenizer(base, 32), pa.array(texts)))
    labels = np.full(count, label) if label < 0 else (np.arange(count) + 1) % 2
    return Examples.of_one_category(tokens, labels)


def fine_tuning(base: Path, machine: Machine = MACHINE, **options: Any) -> FineTuning:
    config = TrainConfig(**{"epochs": 3, **options})
    spec = SPEC
    network = new_classifier(base, spec)
    rows = examples(base, 40, 0), examples(base, 10, 0), examples(base, 100, -1)
    return FineTuning(config, spec, network, rows, base, machine)


@pytest.mark.parametrize("world", [1, 2])
def test_unlabelled_rows_join_with_the_label_that_the_model_is_sure_of(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    def sure_of_long_ones(tokens: Tokens, batch: IntArray) -> torch.Tensor:
        lead = torch.from_numpy((tokens.lengths[batch] > tokens.lengths.min()) * 9.0)
        return torch.stack([torch.zeros(len(batch)), lead.float()], dim=1)

    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda into, mine: into.__setitem__(slice(None), [mine] * 2)
    )
    stage = fine_tuning(tiny_model, Machine(torch.device("cpu"), False, 0, world), pseudo_labels=0.9)
    monkeypatch.setattr(stage, "logits", lambda model, tokens, batch: sure_of_long_ones(tokens, batch))
    assert stage.prepare_epoch([0, 0, 0]) == {}, "what is not trained yet has nothing to say"
    assert stage.prepare_epoch([0, 0, 1]) == {"pseudo_labelled_rows": len(stage.own_labels)}
    own = stage.own_labels
    assert 0 < len(own) < 40, "at most as many as there are labelled rows, and only sure ones"
    assert set(own.sets.first()) == {1}
    assert own.inputs.lengths.min() > stage.unlabelled.inputs.lengths.min()
    tokens, order = stage.begin_epoch(np.random.default_rng(0))
    assert sorted(order[:]) == list(range(40 + len(own)))
    assert len(tokens) == len(order)
    stage.temperature = 9.0
    stage.prepare_epoch([0, 0, 2])
    assert not len(stage.own_labels), "a higher temperature makes the model less sure"


def test_the_adversary_adds_to_the_gradient_and_not_to_the_loss_that_is_logged(tiny_model: Path) -> None:
    found = []
    for size in (0.0, 0.5):
        torch.manual_seed(0)
        stage = fine_tuning(tiny_model, adversarial=size)
        stage.network.eval()
        stage.parameter_groups()

        def backward(stage: FineTuning = stage) -> torch.Tensor:
            loss = stage.losses(stage.network, np.arange(8)).mean()
            loss.backward()
            return loss.detach()

        loss = stage.step(backward, lambda: None)
        found.append((loss, stage.network.classifier.weight.grad))
    assert found[0][0] == found[1][0]
    assert not torch.allclose(found[0][1] * 2, found[1][1]), "not the same gradient twice"


def test_levels_count_as_much_as_they_are_wrong_on_validation(tiny_model: Path) -> None:
    stage = fine_tuning(tiny_model, level_weights="auto")
    assert stage.loss.level_weights == (1.0,)
    fixed = fine_tuning(tiny_model, level_weights=(0.3,))

    def ends_with(stage: FineTuning, **metrics: float) -> tuple[float, ...]:
        metrics["val_temperature"] = 1.0
        stage.validation.score = lambda *_: (metrics, SPEC)  # type: ignore[method-assign]
        assert stage.end_epoch().metrics == metrics
        return stage.loss.level_weights

    assert ends_with(stage, val_accuracy=0.8, val_level_1_accuracy=0.95) == pytest.approx((0.25,))
    assert ends_with(stage, val_accuracy=1.0, val_level_1_accuracy=1.0) == (0.0,)
    assert ends_with(fixed, val_accuracy=0.8, val_level_1_accuracy=0.95) == (0.3,)


@pytest.mark.parametrize("long_tail", ["focal", "class-balanced", "logit-adjusted"])
def test_rows_cost_what_the_options_ask_for(tiny_model: Path, long_tail: LongTail) -> None:
    stage = fine_tuning(tiny_model, long_tail=long_tail, label_smoothing=0.1, level_weights=(0.3,))
    stage.network.eval()
    rows, counts = np.arange(8), np.bincount(stage.train.sets.first())
    logits, labels = (
        stage.logits(stage.network, stage.train.inputs, rows),
        torch.from_numpy(stage.train.sets.first()[rows]),
    )
    wanted = Loss(TREE, counts, long_tail, (0.3,), 0.1)(logits, labels)
    torch.testing.assert_close(stage.losses(stage.network, rows), wanted)
    assert not torch.allclose(wanted, Loss(TREE, counts)(logits, labels))


@pytest.mark.parametrize("long_tail", ["sampling", "augmentation"])
def test_an_epoch_draws_as_the_options_ask_for(tiny_model: Path, long_tail: LongTail) -> None:
    stage = fine_tuning(tiny_model, long_tail=long_tail)
    tokens, order = stage.begin_epoch(np.random.default_rng(0))
    texts = {tokens.flat[start:stop].tobytes() for start, stop in pairwise(tokens.offsets)}
    known = stage.train.inputs
    before = {known.flat[start:stop].tobytes() for start, stop in pairwise(known.offsets)}
    assert bool(texts - before) == (long_tail == "augmentation")
    assert len(order) == 40
    assert (len(set(order)) < 40) == (long_tail == "sampling"), "rows that come again are the same, or altered ones"


def test_a_row_may_have_any_number_of_categories(tiny_model: Path) -> None:
    texts = examples(tiny_model, 64, 0)
    sets = Ragged(np.tile([0, 1, 0], 21).astype(np.int32), np.concatenate([np.repeat(np.arange(22) * 3, 3)[1:], [63]]))
    config, spec = (
        TrainConfig(epochs=3, learning_rate=5e-3),
        Spec(TREE.categories, ("title",), 32, "mean", "", head=MANY_CATEGORIES),
    )
    network = new_classifier(tiny_model, spec)
    rows = Examples(texts.inputs, sets)
    stage = FineTuning(config, spec, network, (rows, rows, rows.take(np.arange(0))), tiny_model, MACHINE)
    logits = stage.logits(network, rows.inputs, np.arange(8))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits,
        torch.tensor([[float(label in sets.flat[a:b]) for label in range(2)] for a, b in pairwise(sets.offsets[:9])]),
        reduction="none",
    )
    torch.testing.assert_close(stage.losses(network, np.arange(8)), expected.sum(dim=1))


def test_masked_words_are_learnt_and_special_tokens_left_alone(tiny_model: Path) -> None:
    texts = examples(tiny_model, 64, -1).inputs
    torch.manual_seed(0)
    network = new_classifier(tiny_model, SPEC)
    stage = MaskedWords(TrainConfig(pretrain_epochs=1, learning_rate=1e-2), network, texts, tiny_model, MACHINE)
    shown: list[torch.Tensor] = []
    stage.network.register_forward_pre_hook(lambda _, inputs: shown.append(torch.stack([inputs[0], inputs[2].long()])))
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=1e-2)
    _, order = stage.begin_epoch(np.random.default_rng(0))
    losses = []
    for _ in range(60):
        loss = stage.losses(stage.network, order[:32]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    ids = torch.stack([pair[0] for pair in shown])
    chosen = torch.stack([pair[1] for pair in shown]).bool()
    plain, mask = MACHINE.batch(texts, order[:32]).values()
    words = (mask & (plain != 101) & (plain != 102)).expand_as(chosen)
    assert not (chosen & ~words).any(), "neither padding nor special tokens are guessed"
    assert chosen.sum() / words.sum() == pytest.approx(0.15, abs=0.01)
    masked, same = ids[chosen] == stage.mask, ids[chosen] == plain.expand_as(ids)[chosen]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.02)
    assert same.float().mean() == pytest.approx(0.1, abs=0.02)
    assert (ids == plain)[~chosen].all()
    encoder = dict(network.base_model.named_parameters())
    assert any(
        torch.equal(parameter, weight) for parameter in stage.network.parameters() for weight in encoder.values()
    )


def test_a_row_without_a_chosen_word_costs_nothing(tiny_model: Path) -> None:
    empty = Tokens.from_arrow(tokenize(load_tokenizer(tiny_model, 8), pa.array(["", ""])))
    network = new_classifier(tiny_model, replace(SPEC, pooling="cls"))
    stage = MaskedWords(TrainConfig(pretrain_epochs=1), network, empty, tiny_model, MACHINE)
    losses = stage.losses(stage.network, np.arange(2))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]


def test_the_token_that_masks_a_word_is_found(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, 8)
    assert tokenizer.id_to_token(mask_token(tokenizer) or 0) == "[MASK]"


def test_rows_of_small_groups_count_more(tiny_model: Path) -> None:
    plain = fine_tuning(tiny_model)
    groups = np.zeros(400, np.int64)
    groups[:100], groups[100:104] = 1, 2
    train = replace(examples(tiny_model, 400, 0), groups=groups)
    rows = train, examples(tiny_model, 10, 0), examples(tiny_model, 10, -1)
    stage = FineTuning(plain.config, SPEC, plain.network, rows, tiny_model, MACHINE)
    weights = stage.group_weights
    assert float(weights[torch.from_numpy(groups)].mean()) == pytest.approx(1.0)
    # By the square root of their rows; one of four rows counts as one of fifty.
    expected = np.sqrt([296, 100, 50])
    assert (weights * weights.new_tensor(expected)).tolist() == pytest.approx([float(weights[0]) * expected[0]] * 3)
    stage.begin_epoch(np.random.default_rng(0))
    stage.network.eval()
    some = np.array([0, 101, 399])
    balanced = stage.losses(stage.network, some)
    stage.epoch_rows = replace(stage.epoch_rows, groups=None)
    torch.testing.assert_close(balanced, stage.losses(stage.network, some) * weights[[1, 2, 0]])
