"""Mixed batches: targets stay distributions, follow the pixels exactly, and depend on the seed alone."""

import pytest
import torch

from affect.expressions.mixing import cutmix, mix, mixup


@pytest.fixture
def batch():
    """Images that are each their own constant, and one-hot targets of eight classes."""
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 20, 30).clone()
    return images, torch.eye(8)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_targets_sum_to_one_and_follow_the_pixels(batch, alphas):
    images, targets = batch
    kinds = set()
    for step in range(30):
        mixed, weights = mix(images, targets, *alphas, (1, step))
        assert mixed.shape == images.shape and torch.allclose(weights.sum(1), torch.ones(8))
        # each image is constant and its target names it, so the mean pixel must be what the target expects
        assert torch.allclose(mixed.mean((1, 2, 3)), weights @ torch.arange(8.0), atol=1e-4)
        inside = mixed.flatten(1).std(1).max() > 1e-3
        kinds.add("cutmix" if inside else "mixup")
    assert ("cutmix" in kinds) == (alphas[1] > 0) and ("mixup" in kinds) == (alphas[0] > 0)


def test_same_seed_gives_the_same_batch_and_another_seed_another(batch):
    images, targets = batch
    first, again, other = (mix(images, targets, 0.4, 1.0, (3, step, 0)) for step in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_mixing_leaves_the_random_state_and_its_arguments_alone(batch):
    images, targets = batch
    kept, state = images.clone(), torch.get_rng_state()
    mix(images, targets, 0.4, 1.0, (0,))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, kept)


def test_no_alpha_returns_the_batch_itself(batch):
    images, targets = batch
    mixed, weights = mix(images, targets, 0.0, 0.0, (0,))
    assert mixed is images and weights is targets


@pytest.mark.parametrize("kind", [mixup, lambda *a: cutmix(*a, (0.5, 0.5))])
def test_keeping_everything_changes_nothing_and_nothing_gives_the_partner(batch, kind):
    images, targets = batch
    partner = torch.arange(8).roll(1)
    mixed, weights = kind(images, targets, 1.0, partner)
    assert torch.equal(mixed, images) and torch.equal(weights, targets)
    mixed, weights = kind(images, targets, 0.0, partner)
    assert torch.equal(mixed, images[partner]) and torch.equal(weights, targets[partner])


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.0), (0.99, 0.3)])
def test_cutmix_weight_is_the_area_that_was_pasted(batch, centre):
    images, targets = batch
    mixed, weights = cutmix(images, targets, 0.75, torch.arange(8).roll(1), centre)
    pasted = (mixed[1] != images[1]).float().mean()
    assert torch.allclose(weights[1, 0], pasted) and torch.allclose(weights[1, 1], 1 - pasted)
    assert pasted <= 0.25 + 1e-6 and (centre != (0.5, 0.5) or pasted == pytest.approx(0.25))


def test_independent_truths_mix_too():
    targets = torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    _, weights = mixup(torch.zeros(2, 1, 4, 4), targets, 0.75, torch.tensor([1, 0]))
    assert weights.tolist() == [[0.75, 1.0, 0.25], [0.25, 1.0, 0.75]]
