import numpy as np
import pytest
import torch

from cataloger.config import LongTail
from cataloger.heads.losses import Loss, SetLoss, class_weights
from cataloger.taxonomy import Taxonomy

TREE = Taxonomy.from_paths(["Food > Fruit", "Food > Tea", "Shoes > Boots", "Shoes > Heels"])
COUNTS = np.array([90, 5, 4, 1])
LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.0, 0.3, 0.1, 0.2]])
LABELS = torch.tensor([1, 3])
P = torch.softmax(LOGITS, dim=1)


def test_plain_cross_entropy_is_the_default() -> None:
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(Loss(TREE, COUNTS)(LOGITS, LABELS), expected)


def test_an_ancestor_has_the_probability_of_all_below_it() -> None:
    above = -torch.stack([P[0, 0] + P[0, 1], P[1, 2] + P[1, 3]]).log()
    own = -torch.stack([P[0, 1], P[1, 3]]).log()
    torch.testing.assert_close(Loss(TREE, COUNTS, level_weights=(0.5,))(LOGITS, LABELS), own + 0.5 * above)


def test_every_level_has_a_weight_of_its_own() -> None:
    tree = Taxonomy.from_paths(["A > x > 1", "A > x > 2", "A > y", "B"])
    own, top, middle = -P[0, 1].log(), -(P[0, 0] + P[0, 1] + P[0, 2]).log(), -(P[0, 0] + P[0, 1]).log()
    found = Loss(tree, COUNTS, level_weights=(0.5, 2.0))(LOGITS, LABELS)[0]
    torch.testing.assert_close(found, own + 0.5 * top + 2 * middle)


def test_smoothing_gives_near_categories_more_than_far_ones() -> None:
    logits = LOGITS.clone().requires_grad_()
    Loss(TREE, COUNTS, label_smoothing=0.2)(logits, LABELS)[0].backward()
    # The gradient is probability minus target: 0.2 / 2 over all four, 0.2 / 2 over the two of the branch.
    target = torch.tensor([0.075, 0.875, 0.025, 0.025])
    torch.testing.assert_close(logits.grad[0], P[0] - target, atol=1e-5, rtol=1e-4)  # type: ignore[index]


def test_focal_loss_looks_away_from_what_is_easy() -> None:
    own = torch.stack([P[0, 1], P[1, 3]])
    torch.testing.assert_close(Loss(TREE, COUNTS, "focal")(LOGITS, LABELS), -((1 - own) ** 2) * own.log())


def test_class_balanced_weights_are_inverse_effective_numbers_with_mean_one() -> None:
    weights = class_weights(COUNTS)
    effective = (1 - 0.999**COUNTS) / (1 - 0.999)
    np.testing.assert_allclose(weights / weights[0], effective[0] / effective)
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    plain, balanced = Loss(TREE, COUNTS)(LOGITS, LABELS), Loss(TREE, COUNTS, "class-balanced")(LOGITS, LABELS)
    torch.testing.assert_close(balanced, plain * torch.from_numpy(weights).float()[LABELS])


def test_logit_adjustment_asks_more_of_rare_categories() -> None:
    prior = torch.from_numpy(COUNTS / COUNTS.sum()).float()
    expected = torch.nn.functional.cross_entropy(LOGITS + prior.log(), LABELS, reduction="none")
    torch.testing.assert_close(Loss(TREE, COUNTS, "logit-adjusted")(LOGITS, LABELS), expected)
    unseen = Loss(TREE, np.array([10, 0, 5, 5]), "logit-adjusted")(LOGITS, LABELS)
    assert torch.isfinite(unseen).all()


@pytest.mark.parametrize("kind", ["off", "focal"])
def test_any_number_of_categories_by_hand(kind: LongTail) -> None:
    has = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    p = torch.sigmoid(LOGITS)
    right = torch.where(has > 0, p, 1 - p)
    expected = -right.log() * ((1 - right) ** 2 if kind == "focal" else 1)
    torch.testing.assert_close(SetLoss(kind)(LOGITS, has), expected.sum(dim=1))


def test_extreme_logits_have_a_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0, 0.0]], requires_grad=True)
    for kind in ("off", "focal", "class-balanced", "logit-adjusted"):
        loss = Loss(TREE, COUNTS, kind, level_weights=(1.0,), label_smoothing=0.1)(logits, torch.tensor([3]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
