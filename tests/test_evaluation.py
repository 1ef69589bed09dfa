"""Class means, predictions and metrics against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.evaluation import accuracies, accuracy_percent, class_means, features_of, mean_features, scores, summary

PREP = Preprocessing(torch.zeros(3), torch.ones(3), 0, True)


class Corners(nn.Module):
    """Features are the red values of the two upper corners; the classifier is given."""

    def __init__(self, weight=((1.0, 0.0), (0.0, 1.0))):
        super().__init__()
        self.weight = torch.tensor(weight)

    def features(self, x):
        return torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1]], dim=1)

    def classifier(self, features):
        return features @ self.weight.T


def image(left, right):
    x = torch.zeros(3, 2, 2, dtype=torch.uint8)
    x[0, 0, 0], x[0, 0, 1], x[2, 1, 1] = left, right, 200
    return x


def test_features_of_mirror_images_flip_the_width_axis():
    images = torch.stack([image(255, 0), image(51, 102)])
    assert torch.allclose(features_of(Corners(), images, PREP, 1), torch.tensor([[1.0, 0.0], [0.2, 0.4]]))
    mirrored = features_of(Corners(), images, PREP, 1, mirrored=True)
    assert torch.allclose(mirrored, torch.tensor([[0.0, 1.0], [0.4, 0.2]]))


def test_mean_features_by_hand():
    features, labels = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]]), torch.tensor([1, 1, 0])
    expected = torch.tensor([[1.0, 0.0], [0.3, 0.9]], dtype=torch.float64)
    assert torch.allclose(mean_features(features, labels, 2), expected)


def test_class_means_average_over_mirror_images_and_have_unit_length():
    data = LabelledImages(torch.stack([image(60, 80), image(255, 0)]), torch.tensor([0, 0]))
    # unit features (0.6, 0.8), (1, 0); mirrored (0.8, 0.6), (0, 1): both sums are 2.4
    means = class_means(Corners(), data, 1, PREP, 10)
    assert torch.allclose(means, torch.full((1, 2), 1 / math.sqrt(2), dtype=torch.float64), atol=1e-7)
    no_mirror = Preprocessing(PREP.mean, PREP.std, 0, False)
    plain = class_means(Corners(), data, 1, no_mirror, 10)
    assert torch.allclose(plain, F.normalize(torch.tensor([[1.6, 0.8]], dtype=torch.float64)), atol=1e-7)


def test_nme_is_the_nearest_mean_in_euclidean_distance():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 2, 2), dtype=torch.uint8)
    means = F.normalize(torch.rand(4, 2, dtype=torch.float64))
    features = features_of(Corners(), images, PREP, 50).double()
    by_distance = torch.cdist(F.normalize(features), means).argmin(1)
    found = scores(Corners(), images, {"nme": means}, PREP, 7)
    assert torch.equal(found["nme"].argmax(1), by_distance)
    assert torch.equal(found["cnn"].argmax(1), features.argmax(1))


def test_accuracy_is_in_percent_with_two_decimals():
    assert accuracy_percent(torch.tensor([1, 1, 0]), torch.tensor([1, 1, 1])) == 66.67


def test_accuracies_by_phase_of_origin():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    predicted = torch.tensor([0, 1, 1, 1, 2, 0, 0, 3])
    phase_of_label = torch.tensor([0, 0, 1, 2, 2])  # label 4 is not seen yet
    result = accuracies({"cnn": predicted}, labels, phase_of_label)
    assert result == {"accuracy": {"cnn": 62.5}, "phase0_accuracy": {"cnn": 75.0},
                      "by_origin": {"cnn": [75.0, 33.33, 100.0]}}  # fmt: skip


def phase(accuracy, phase0):
    return {"accuracy": {"cnn": accuracy, "cnn_before_finetune": 1.0}, "phase0_accuracy": {"cnn": phase0}}


def test_summary_by_hand():
    result = summary([phase(80.0, 80.0), phase(70.0, 66.0), phase(62.0, 61.5)])
    assert result["average_accuracy"] == {"cnn": pytest.approx(70.67)}  # phase 0 is one of the three
    assert result["last_accuracy"] == {"cnn": 62.0}
    assert result["forgetting"] == {"cnn": 18.5}  # phase-0 classes only, not the drop of the overall accuracy
