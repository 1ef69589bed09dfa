"""The call of the library with models, settings and states that are not those of this package's runs."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from mnemonics import BilevelSettings, optimise_exemplars
from mnemonics.data.batches import LabelledImages
from mnemonics.engine.errors import NonFiniteLossError
from mnemonics.exemplars.base_level import BaseLevel

SETTINGS = BilevelSettings(steps=4, lr=0.5, epochs=2, outer_lr=0.05)
LABELS = torch.arange(20) % 5


class Model(nn.Module):
    """From 8 numbers to 5 logits, by a `first` layer."""

    def __init__(self, first=None):
        super().__init__()
        self.first, self.classifier = first or nn.Linear(8, 8), nn.Linear(8, 5)

    def features(self, x):
        return torch.tanh(self.first(x))

    def forward(self, x):
        return self.classifier(self.features(x))


class Normalised(nn.Module):
    """A linear layer with normalised weights, by their formula."""

    def __init__(self, v, g, bias):
        super().__init__()
        self.v, self.g, self.bias = nn.Parameter(v), nn.Parameter(g), nn.Parameter(bias)

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)


class Keeping(Model):
    """Keeps its last features, as some networks do."""

    def features(self, x):
        self.last = super().features(x)
        return self.last


class Checkpointed(Model):
    """Computes its features again in the backward pass."""

    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=False)


def data(seed=1):
    inputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LabelledImages(inputs, LABELS)


def gradient(model, settings=SETTINGS, exemplars=None, validation=None):
    """That of a validation loss for the exemplars."""
    base = BaseLevel(model, settings)
    draws = base.draw(LABELS, torch.Generator().manual_seed(0)) if settings.variant != "class-mean" else ()
    return base.gradient(exemplars or data(), validation or data(2), draws, 3)[1]


def made(kind=Model, **parts):
    torch.manual_seed(0)
    return kind(**parts).double()


def call(model, settings=SETTINGS):
    validation = data(2)
    start = data().images[:10].float()
    given = start, LABELS[:10], lambda: (validation.images.float(), LABELS)
    made = optimise_exemplars(model.float(), *given, settings)
    assert torch.equal(start, data().images[:10].float())
    return made


def test_weights_that_are_normalised():
    """PyTorch's own second derivative of it is wrong (torch 2.12)."""
    model = made(first=parametrizations.weight_norm(nn.Linear(8, 8)))
    other, weight = copy.deepcopy(model), model.first.parametrizations.weight
    parts = (part.detach().clone() for part in (weight.original1, weight.original0, model.first.bias))
    other.first = Normalised(*parts)
    assert torch.allclose(gradient(model), gradient(other), rtol=1e-9, atol=1e-15)


def test_models_that_keep_what_they_computed():
    keeping, plain, pruned = made(Keeping), made(), made()
    keeping(data().images)
    assert torch.equal(gradient(keeping), gradient(plain))
    prune.custom_from_mask(pruned.first, "weight", torch.ones(8, 8))
    assert torch.allclose(gradient(pruned), gradient(plain), rtol=1e-9)


def test_gradient_checkpointing_is_refused():
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        gradient(made(Checkpointed))


def test_noise_is_put_on_what_later_training_may_change():
    model = made(first=parametrizations.weight_norm(nn.Linear(8, 8)))
    model.classifier.requires_grad_(False)
    base = BaseLevel(model, SETTINGS)
    base.disturb(torch.Generator().manual_seed(0))
    assert not torch.equal(base.model.first.weight, model.first.weight)
    assert torch.equal(base.model.first.bias, model.first.bias)
    assert torch.equal(base.model.classifier.weight, model.classifier.weight)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="optimizer 'Adam': must be one of adam, sgd"):
        BilevelSettings(optimizer="Adam")
    with pytest.raises(ValueError, match="variant 'unroll_fc'"):
        BilevelSettings(variant="unroll_fc")
    with pytest.raises(ValueError, match="no parameter"):
        gradient(made().requires_grad_(False))
    others = LabelledImages(data().images, LABELS + 1)
    with pytest.raises(ValueError, match="no exemplars"):
        gradient(made(), dataclasses.replace(SETTINGS, variant="class-mean"), validation=others)


def test_a_gradient_that_is_not_finite():
    model = nn.Sequential(nn.Linear(8, 5)).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].abs().sqrt(),))
    exemplars = data()
    exemplars.images[0, 0] = 0  # there the square root has no derivative
    with pytest.raises(NonFiniteLossError, match="epoch 3: the gradient of the validation loss"):
        gradient(model, exemplars=exemplars)


def test_inside_no_grad():
    expected = call(made())
    with torch.no_grad():
        assert torch.equal(call(made()), expected)
    assert torch.is_grad_enabled()
