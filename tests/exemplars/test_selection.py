"""Random selection, and herding against a slow implementation written from the formula of the paper."""

import pytest
import torch

from mnemonics.exemplars.selection import herd, herding_selection, random_selection


def herd_by_the_formula(features, count):
    """iCaRL, Algorithm 4, literally: of all images not yet chosen take the one that brings the mean nearest."""
    unit = [f / f.norm() for f in features.double()]
    mean = sum(unit) / len(unit)
    chosen = []
    for k in range(1, count + 1):
        distance = {
            i: (mean - (sum((unit[j] for j in chosen), torch.zeros_like(mean)) + x) / k).norm().item()
            for i, x in enumerate(unit)
            if i not in chosen
        }
        chosen.append(min(distance, key=distance.get))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_equals_the_formula(seed):
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)) + 0.5
    assert herd(features, 15).tolist() == herd_by_the_formula(features, 15)


def test_herding_never_picks_an_image_twice_and_fills_its_quota():
    """One image at the mean of all would be picked again and again."""
    features = torch.cat([torch.ones(1, 4), torch.eye(4).repeat(5, 1)])
    chosen = herd(features, 21).tolist()
    assert chosen[0] == 0
    assert sorted(chosen) == list(range(21))


def test_herding_keeps_class_by_class_order_and_ignores_feature_scale():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([7, 3, 5] * 10)
    chosen = herding_selection(features, labels, 4)
    assert labels[chosen].tolist() == [3] * 4 + [5] * 4 + [7] * 4
    fives = torch.nonzero(labels == 5).flatten()
    assert chosen[4:8].tolist() == fives[herd_by_the_formula(features[fives], 4)].tolist()
    scale = torch.rand(30, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert torch.equal(herding_selection(features * scale, labels, 4), chosen)


def test_random_selection_is_balanced_random_and_repeatable():
    labels = torch.tensor([4, 2, 9] * 30)
    chosen = random_selection(labels, 5, torch.Generator().manual_seed(0))
    assert labels[chosen].tolist() == [2] * 5 + [4] * 5 + [9] * 5
    assert len(chosen.unique()) == 15
    assert torch.equal(chosen, random_selection(labels, 5, torch.Generator().manual_seed(0)))
    assert not torch.equal(chosen, random_selection(labels, 5, torch.Generator().manual_seed(1)))
