"""Eq. 9 and Eq. 10: what is optimised, against what, and what is left alone."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnemonics.config import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.exemplars.bilevel import (
    BilevelSettings,
    NetworkInput,
    Pixels,
    adjust_old_exemplars,
    balanced_halves,
    base_level_batches,
    exemplar_gradient,
    loss_after_steps,
    optimise_new_exemplars,
)
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.runtime import NonFiniteLossError

PREP = Preprocessing(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3]), 2, False)
SETTINGS = BilevelSettings(steps=5, rate=0.1, batch_size=64, epochs=15, pixel_rate=0.05, optimizer="adam")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n, classes=3, first=0, seed=0):
    """Images of `classes` classes, each a colour pattern with noise."""
    generator = draws(seed)
    patterns = torch.randint(60, 196, (10, 3, 6, 6), generator=draws(99))
    labels = torch.arange(n) % classes + first
    noise = torch.randint(-60, 60, (n, 3, 6, 6), generator=generator)
    return LabelledImages((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    model.train()(PREP.plain(blobs(60).images))
    return model


def test_optimised_exemplars_lower_the_validation_loss_and_rounding_keeps_the_gain():
    start, data, model = blobs(12), blobs(300, seed=1), network()
    weights = copy.deepcopy(model.state_dict())
    new, losses = optimise_new_exemplars(model, start, data, PREP, SETTINGS, draws())
    assert losses["optimised"] < 0.9 * losses["start"]
    assert losses["rounded"] == pytest.approx(losses["optimised"], rel=0.02)
    assert new.images.dtype == torch.uint8
    assert torch.equal(new.labels, start.labels)
    assert (new.images != start.images).flatten(1).any(1).all()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_optimisation_is_repeatable():
    results = [optimise_new_exemplars(network(), blobs(12), blobs(90, seed=1), PREP, SETTINGS, draws(4)) for _ in "ab"]
    assert torch.equal(results[0][0].images, results[1][0].images)
    assert results[0][1] == results[1][1]


def test_sgd_moves_pixels_by_the_negative_gradient():
    """One epoch from exemplars that no clamp touches, with the gradient of the plain graph."""
    settings = dataclasses.replace(SETTINGS, optimizer="sgd", epochs=1, pixel_rate=20.0, steps=2)
    start, data, model = blobs(12), blobs(30, seed=1), network()
    model.eval()
    x = PREP.plain(start.images).requires_grad_()
    θ = dict(model.named_parameters())
    for _ in range(2):  # 12 exemplars are one full batch, whose order does not matter
        loss = F.cross_entropy(torch.func.functional_call(model, θ, (x,)), start.labels)
        gradient = torch.autograd.grad(loss, list(θ.values()), create_graph=True)
        θ = {name: p - 0.1 * g for (name, p), g in zip(θ.items(), gradient, strict=True)}
    validation = F.cross_entropy(torch.func.functional_call(model, θ, (PREP.plain(data.images),)), data.labels)
    expected = x - 20.0 * torch.autograd.grad(validation, x)[0]
    pixels = (expected * PREP.std[:, None, None] + PREP.mean[:, None, None]) * 255
    new, _ = optimise_new_exemplars(model, start, data, PREP, settings, draws())
    assert (new.images.float() - pixels.clamp(0, 255)).abs().max() <= 0.501
    assert (new.images != start.images).any()


def test_gradient_is_for_the_used_exemplars_only():
    exemplars = NetworkInput(PREP.plain(blobs(12).images), blobs(12).labels)
    batches = torch.tensor([[0, 4, 8], [1, 4, 11]])
    data = blobs(30, seed=1)
    validation = NetworkInput(PREP.plain(data.images), data.labels)
    used, gradient = exemplar_gradient(network().eval(), exemplars, batches, validation, SETTINGS, 0)
    assert used.tolist() == [0, 1, 4, 8, 11]
    assert gradient.shape == (5, 3, 6, 6)
    assert gradient.flatten(1).any(1).all()


def test_adjusting_changes_every_old_exemplar_and_helps():
    model, old = network(), blobs(24)
    memory = ExemplarMemory(LabelledImages(old.images[old.labels.argsort()], old.labels.sort().values))
    adjusted = adjust_old_exemplars(model, memory, PREP, SETTINGS, draws())
    assert torch.equal(adjusted.data.labels, memory.data.labels)
    assert (adjusted.data.images != memory.data.images).flatten(1).any(1).all()
    a, b = balanced_halves(memory.data.labels, draws(5))
    held = memory.data[b]

    def held_loss(data):
        exemplars = NetworkInput(PREP.plain(data.images), data.labels)
        batches = base_level_batches(data.labels, SETTINGS, draws())
        validation = NetworkInput(PREP.plain(held.images), held.labels)
        return loss_after_steps(model.eval(), exemplars, batches, validation, SETTINGS)

    assert held_loss(adjusted.data[a]) < held_loss(memory.data[a])


def test_nothing_to_adjust_in_an_empty_memory_or_with_one_exemplar_per_class():
    empty = ExemplarMemory.empty(6, torch.device("cpu"))
    assert adjust_old_exemplars(network(), empty, PREP, SETTINGS, draws()) is empty
    single = ExemplarMemory(blobs(3))
    assert adjust_old_exemplars(network(), single, PREP, SETTINGS, draws()) is single


def test_halves_are_disjoint_complete_balanced_and_random():
    labels = torch.tensor([0] * 6 + [1] * 6 + [2] * 5)
    a, b = balanced_halves(labels, draws())
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(17))
    assert torch.bincount(labels[a]).tolist() == [3, 3, 2]
    assert torch.bincount(labels[b]).tolist() == [3, 3, 3]
    assert sorted(balanced_halves(labels, draws(1))[0].tolist()) != sorted(a.tolist())


def test_pixels_are_clamped_to_what_uint8_can_show_and_untouched_rows_stay():
    start = blobs(4)
    for optimizer in ("adam", "sgd"):
        pixels = Pixels(
            PREP.plain(start.images), PREP, dataclasses.replace(SETTINGS, optimizer=optimizer, pixel_rate=50.0)
        )
        for _ in range(2):
            pixels.step(torch.tensor([1, 3]), torch.ones(2, 3, 6, 6))
        assert torch.equal(pixels.as_uint8()[[0, 2]], start.images[[0, 2]])
        assert not pixels.as_uint8()[[1, 3]].any()  # black
        pixels.step(torch.tensor([1]), -1000 * torch.ones(1, 3, 6, 6))
        assert (pixels.images <= pixels.high).all()
        assert (pixels.images >= pixels.low).all()


def test_pixel_rate_is_halved_every_fifth_of_the_epochs():
    pixels = Pixels(PREP.plain(blobs(2).images), PREP, dataclasses.replace(SETTINGS, epochs=50, pixel_rate=0.01))
    rates = []
    for _ in range(50):
        rates.append(pixels.optimizer.param_groups[0]["lr"])
        pixels.step(torch.tensor([0, 1]), torch.ones(2, 3, 6, 6))
        pixels.end_epoch()
    assert rates == [0.01 / 2 ** (epoch // 10) for epoch in range(50)]


def test_pixels_have_no_weight_decay():
    """It would pull pixels to the mean colour."""
    for optimizer in ("adam", "sgd"):
        start = PREP.plain(blobs(2).images)
        pixels = Pixels(start.clone(), PREP, dataclasses.replace(SETTINGS, optimizer=optimizer))
        pixels.step(torch.tensor([0, 1]), torch.zeros(2, 3, 6, 6))
        assert torch.equal(pixels.images, start)


def test_settings_come_from_the_command_line():
    config = ExperimentConfig(mnemonics_steps=3, mnemonics_lr=0.2, mnemonics_epochs=4, mnemonics_outer_lr=0.5,
                              mnemonics_optimizer="sgd", train_batch_size=17)  # fmt: skip
    assert BilevelSettings.of(config) == BilevelSettings(3, 0.2, 17, 4, 0.5, "sgd")


def test_non_finite_loss_is_an_error_that_names_epoch_and_rates():
    settings = dataclasses.replace(SETTINGS, rate=1e30)
    with pytest.raises(NonFiniteLossError, match=r"epoch 0.*--mnemonics_lr 1e\+30.*--mnemonics_outer_lr 0.05"):
        optimise_new_exemplars(network(), blobs(12), blobs(30, seed=1), PREP, settings, draws())
