"""Losses against torch's own and against sums written out by hand."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from affect.expressions.losses import ExpressionLoss, class_weights, smoothed

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(16, 5, generator=GENERATOR) * 3
LABELS = torch.randint(5, (16,), generator=GENERATOR)
HARD = one_hot(LABELS, 5).float()
SOFT = torch.rand(16, 5, generator=GENERATOR).softmax(dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_and_soft_targets_have_torchs_cross_entropy(smoothing):
    loss = ExpressionLoss(smoothing=smoothing)
    torch.testing.assert_close(loss(LOGITS, HARD), cross_entropy(LOGITS, LABELS, label_smoothing=smoothing))
    torch.testing.assert_close(loss(LOGITS, SOFT), cross_entropy(LOGITS, SOFT, label_smoothing=smoothing))


def test_smoothing_holds_under_mixup():
    """Of mixed targets every class keeps at least its share of the smoothing, and the sum stays one."""
    mixed = 0.7 * HARD + 0.3 * HARD.flip(0)
    smooth = smoothed(mixed, 0.2)
    assert smooth.min().item() == pytest.approx(0.2 / 5)
    torch.testing.assert_close(smooth.sum(dim=1), torch.ones(16))
    assert ExpressionLoss(smoothing=0.2)(LOGITS, mixed) != ExpressionLoss()(LOGITS, mixed)


def test_focal_loss_is_cross_entropy_weighted_by_what_is_missing():
    p = LOGITS.softmax(dim=1)
    expected = -(SOFT * (1 - p) ** 2 * p.log()).sum(dim=1).mean()
    torch.testing.assert_close(ExpressionLoss(focal_gamma=2.0)(LOGITS, SOFT), expected)
    torch.testing.assert_close(ExpressionLoss(focal_gamma=0.0)(LOGITS, SOFT), ExpressionLoss()(LOGITS, SOFT))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_focal_gradients_stay_finite_where_the_network_is_certain(gamma, multi_label):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ExpressionLoss(multi_label, focal_gamma=gamma)(logits, torch.eye(2))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.isfinite().all()


def test_multi_label_is_binary_cross_entropy_smoothed_towards_neither_yes_nor_no():
    truth = (SOFT > 0.2).float()
    torch.testing.assert_close(ExpressionLoss(True)(LOGITS, truth), binary_cross_entropy_with_logits(LOGITS, truth))
    expected = binary_cross_entropy_with_logits(LOGITS, truth * 0.8 + 0.1)
    torch.testing.assert_close(ExpressionLoss(True, smoothing=0.2)(LOGITS, truth), expected)


def test_balanced_weights_let_every_class_count_alike():
    targets = one_hot(torch.tensor([0] * 90 + [1] * 9 + [2]), 4).float()
    weights = class_weights("balanced", targets, "abcd")
    torch.testing.assert_close(weights[:3] * torch.tensor([90.0, 9.0, 1.0]), torch.full((3,), 100 / 3))
    assert weights[3] == 0  # no image of it
    logits = torch.zeros(100, 4)
    assert ExpressionLoss(class_weights=weights)(logits, targets).item() == pytest.approx(
        torch.tensor(4.0).log().item()
    )


def test_given_weights_are_scaled_to_a_mean_of_one_over_the_images():
    weights = class_weights([1.0, 3.0], one_hot(torch.tensor([0, 0, 0, 1]), 2).float(), ("sad", "happy"))
    torch.testing.assert_close(weights, torch.tensor([1.0, 3.0]) / 1.5)
    assert class_weights(None, HARD, "abcde") is None
    with pytest.raises(
        ValueError, match=r"run\.class_weight: expected 2 weights from 0 up, one for each of sad, happy"
    ):
        class_weights([1.0, 2.0, 3.0], HARD[:, :2], ("sad", "happy"))


def test_half_precision_logits_have_a_loss_in_full_precision():
    assert ExpressionLoss()(LOGITS.half(), HARD).dtype == torch.float32
