"""Eq. 9 and Eq. 10: what is optimised, against what, and what is left alone."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from contexts import context, resolved, with_settings
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from mnemonics import BilevelSettings
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.engine import device
from mnemonics.engine.errors import NonFiniteLossError
from mnemonics.engine.progress import Progress
from mnemonics.exemplars import base_level
from mnemonics.exemplars.base_level import BaseLevel
from mnemonics.exemplars.meta_level import Pixels, adjust_old_exemplars, balanced_subsets, optimise_new_exemplars
from mnemonics.experiment.state import parse_args
from mnemonics.models import make_network

PREP = Preprocessing(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3]), 2, False)
SETTINGS = BilevelSettings(steps=5, lr=0.1, batch_size=64, epochs=15, outer_lr=0.05, optimizer="adam")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n, classes=3, first=0, seed=0):
    """Images of `classes` classes, each a colour pattern with noise."""
    patterns = torch.randint(60, 196, (10, 3, 6, 6), generator=draws(99))
    labels = torch.arange(n) % classes + first
    noise = torch.randint(-60, 60, (n, 3, 6, 6), generator=draws(seed))
    return LabelledImages((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)


def network_input(data):
    return LabelledImages(PREP.plain(data.images), data.labels)


class Net(nn.Module):
    """A small network with BatchNorm in the shape of this project's: features, then a classifier."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(8 * 16, 5)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.classifier(self.features(x))


def optimised(model, start, data, settings=SETTINGS, old=None, prep=PREP, **config):
    """The exemplars and losses of `optimise_new_exemplars`."""
    phase = context(prep, with_settings(settings, **config))
    images, losses = optimise_new_exemplars(phase, model, start, data, old or blobs(0))
    return LabelledImages(images, start.labels), losses


def adjusted(model, old, settings=SETTINGS, **config):
    phase = context(PREP, with_settings(settings, **config))
    return LabelledImages(adjust_old_exemplars(phase, model, old), old.labels)


def network(seed=0):
    torch.manual_seed(seed)
    model = Net()
    model.train()(PREP.plain(blobs(60).images))
    return model


def test_optimised_exemplars_lower_the_validation_loss_and_rounding_keeps_the_gain():
    start, data, model = blobs(12), blobs(300, seed=1), network()
    weights = copy.deepcopy(model.state_dict())
    new, losses = optimised(model, start, data)
    assert losses["optimised"] < 0.9 * losses["start"]
    assert losses["rounded"] == pytest.approx(losses["optimised"], rel=0.02)
    assert new.images.dtype == torch.uint8
    assert torch.equal(new.labels, start.labels)
    assert (new.images != start.images).flatten(1).any(1).all()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_gradient_is_for_the_used_exemplars_only():
    exemplars, validation = network_input(blobs(12)), network_input(blobs(30, seed=1))
    batches = torch.tensor([[0, 4, 8], [1, 4, 11]])
    base = BaseLevel(network(), dataclasses.replace(SETTINGS, steps=2))
    used, gradient, _ = base.gradient(exemplars, validation, (batches, exemplars.labels[batches]), 0)
    assert used.nonzero().flatten().tolist() == [0, 1, 4, 8, 11]
    assert gradient.shape == (12, 3, 6, 6)
    assert torch.equal(gradient.flatten(1).any(1), used)


def test_joint_base_level_trains_on_the_fixed_exemplars_too_and_leaves_them_alone():
    model, exemplars, fixed = network().eval(), network_input(blobs(6, first=2)), network_input(blobs(4, classes=2))
    validation = network_input(blobs(30, classes=5, seed=1))
    joint = exemplars.followed_by(fixed)
    base = BaseLevel(model, SETTINGS, fixed)
    chosen = base.draw(exemplars.labels, draws())
    used, gradient, _ = base.gradient(exemplars, validation, chosen, 0)
    all_used, all_gradients, _ = BaseLevel(model, SETTINGS).gradient(joint, validation, chosen, 0)
    assert used.tolist() == [True] * 6
    assert all_used.tolist() == [True] * 10
    assert torch.allclose(gradient, all_gradients[:6])
    old = blobs(4, classes=2)
    new, losses = optimised(model, blobs(6, first=2), blobs(90, first=2), old=old)
    assert new.labels.tolist() == [2, 3, 4, 2, 3, 4]
    assert losses["optimised"] < losses["start"]


def test_joint_validation_holds_all_classes_in_equal_parts(monkeypatch):
    seen, original = [], BaseLevel.gradient

    def spy(self, exemplars, validation, draws, epoch):
        seen.append(torch.bincount(validation.labels).tolist())
        return original(self, exemplars, validation, draws, epoch)

    monkeypatch.setattr(BaseLevel, "gradient", spy)
    settings = dataclasses.replace(SETTINGS, val_batch_size=20, epochs=3)
    arguments = (network(), blobs(6, first=2), blobs(300, first=2, seed=1), settings, blobs(40, classes=2))
    optimised(*arguments)
    assert seen == [[4, 4, 4, 4, 4]] * 3
    seen.clear()
    optimised(*arguments, mnemonics_base="new")
    assert all(counts[:2] == [0, 0] and sum(counts) == 20 for counts in seen)


def test_disturbing_puts_new_noise_of_a_given_size_on_the_weights_of_layers_alone():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base, generator = BaseLevel(model, dataclasses.replace(SETTINGS, disturb=0.2)), draws()
    seen = []
    for _ in range(50):
        base.disturb(generator)
        seen.append({name: value.clone() for name, value in base.model.state_dict().items()})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # it has a copy
    for name, value in before.items():
        noise = torch.stack([state[name] for state in seen]) - value
        if name in ("body.0.weight", "classifier.weight"):
            size = value.square().mean().sqrt()
            assert torch.allclose(noise.flatten(1).std(1), 0.2 * size, rtol=0.25)  # the last as large as the first
            assert noise.mean(0).abs().mean() < 0.2 * 0.2 * size  # new every time, around the same weights
        else:
            assert not noise.any()


def test_without_disturbance_nothing_is_drawn_for_it():
    generator, untouched = draws(), draws()
    base = BaseLevel(network(), dataclasses.replace(SETTINGS, disturb=0.0))
    base.disturb(generator)
    assert torch.equal(generator.get_state(), untouched.get_state())


@pytest.mark.parametrize("disturb", [0.0, 0.5])
def test_each_update_is_made_for_another_disturbed_model(monkeypatch, disturb):
    models, gradient = [], BaseLevel.gradient

    def spy(self, *arguments):
        models.append(self.parameters["body.0.weight"].clone())
        return gradient(self, *arguments)

    monkeypatch.setattr(BaseLevel, "gradient", spy)
    settings, model = dataclasses.replace(SETTINGS, disturb=disturb, epochs=2), network()
    new, _ = optimised(model, blobs(12), blobs(90, seed=1), settings)
    adjusted(model, new, settings)
    assert len(models) == 2 + 2 * 2  # of new exemplars, of two halves of old ones
    different = {tuple(weight.flatten().tolist()) for weight in [*models, model.body[0].weight.detach()]}
    assert len(different) == (7 if disturb else 1)


def test_tf32_is_for_the_gradients_of_exemplars_alone(monkeypatch):
    exemplars, seen, loss = network_input(blobs(12)), [], base_level.own_loss

    def recorded(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return loss(*arguments)

    monkeypatch.setattr(base_level, "own_loss", recorded)
    device.prepare(torch.device("cpu"), deterministic=False)
    for allowed in (False, True):
        base = BaseLevel(network(), dataclasses.replace(SETTINGS, tf32=allowed))
        chosen = base.draw(exemplars.labels, draws())
        base.gradient(exemplars, exemplars, chosen, 0)
        base.loss_after_steps(exemplars, exemplars, chosen)
    assert seen == [False, False, True, False]


def test_unroll_fc_is_unroll_restricted_to_the_classifier():
    model, exemplars, validation = network().eval(), network_input(blobs(12)), network_input(blobs(30, seed=1))
    chosen = BaseLevel(model, SETTINGS).draw(exemplars.labels, draws())
    frozen = copy.deepcopy(model)
    frozen.body.requires_grad_(False)
    by_name = dataclasses.replace(SETTINGS, variant="unroll-fc")
    bases = BaseLevel(model, by_name), BaseLevel(frozen, SETTINGS), BaseLevel(model, SETTINGS)
    gradient, expected, full = (base.gradient(exemplars, validation, chosen, 0)[1] for base in bases)
    assert torch.equal(gradient, expected)
    assert not torch.allclose(gradient, full, rtol=0.1)


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


def squared(logits, labels):
    return F.mse_loss(logits, (labels[:, None] == torch.arange(logits.shape[1])).to(logits))


class Attention(nn.Module):
    """Maps [n, 2, 12] to 5 logits by a transformer layer."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.TransformerEncoderLayer(2, 1, 8, batch_first=True), nn.Linear(2, 5)

    def forward(self, x):
        return self.classifier(self.body(x.mT).mean(1))


MODULES = {  # a module for five classes, and the shape of what it takes
    "folded": (lambda: make_network("resnet8", 5, torch.device("cpu")), (3, 8, 8)),
    "signals": (lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.Softplus(), nn.Flatten(), nn.Linear(80, 5)), (2, 12)),
    "attention": (Attention, (2, 12)),
}


@pytest.mark.parametrize("loss", [F.cross_entropy, smoothed, squared])
@pytest.mark.parametrize("module", MODULES)
def test_the_gradient_of_any_module_shape_and_loss_is_that_of_the_plain_graph(module, loss):
    torch.manual_seed(0)
    make, shape = MODULES[module]
    model, labels = make().double().eval(), torch.arange(20) % 5
    exemplars, validation = (LabelledImages(torch.randn(20, *shape).double(), labels) for _ in "ab")
    base = BaseLevel(model, dataclasses.replace(SETTINGS, steps=3, batch_size=10, loss=loss))
    assert (base.network is not base.model) == (module == "folded")
    draws_of_steps = base.draw(labels, draws())
    _, gradient, value = base.gradient(exemplars, validation, draws_of_steps, 0)
    x, θ = exemplars.images.requires_grad_(), dict(model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):
        for batch, of_batch in zip(*draws_of_steps, strict=True):
            of_step = loss(functional_call(model, θ, (x[batch],)), of_batch)
            step = torch.autograd.grad(of_step, list(θ.values()), create_graph=True)
            θ = {name: p - 0.1 * g for (name, p), g in zip(θ.items(), step, strict=True)}
        expected = loss(functional_call(model, θ, (validation.images,)), labels)
    assert torch.allclose(value, expected, rtol=1e-10)
    assert torch.allclose(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-7, atol=1e-12)
    assert base.loss_after_steps(exemplars, validation, draws_of_steps) == pytest.approx(value.item(), rel=1e-10)


@pytest.mark.parametrize("loss", [F.cross_entropy, squared])
def test_class_mean_gradient_is_that_of_cosines_to_class_means(loss):
    settings = dataclasses.replace(SETTINGS, variant="class-mean", loss=loss)
    model, exemplars, validation = network().eval(), network_input(blobs(6, first=1)), network_input(blobs(9, first=1))
    x = exemplars.images.clone().requires_grad_()
    means = torch.stack([model.features(x[exemplars.labels == c]).mean(0) for c in (1, 2, 3)])
    cosines = torch.stack([F.cosine_similarity(f[None], means) for f in model.features(validation.images)])
    expected = torch.autograd.grad(loss(cosines, validation.labels - 1), x)[0]
    used, gradient, _ = BaseLevel(model, settings).gradient(exemplars, validation, [], 0)
    assert used.tolist() == [True] * 6
    assert torch.allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("variant", ["unroll", "unroll-fc", "class-mean"])
def test_every_variant_changes_exemplars_and_reports_the_same_yardstick(variant):
    settings = dataclasses.replace(SETTINGS, variant=variant, epochs=2)
    new, losses = optimised(network(), blobs(12), blobs(90, seed=1), settings)
    assert (new.images != blobs(12).images).any()
    unrolled = dataclasses.replace(SETTINGS, epochs=2)
    plain, reference = optimised(network(), blobs(12), blobs(90, seed=1), unrolled)
    assert losses["start"] == reference["start"]
    assert variant == "unroll" or not torch.equal(new.images, plain.images)


def test_augmented_base_level_uses_one_crop_per_step_and_exemplar():
    prep = dataclasses.replace(PREP, crop_padding=2)
    base = BaseLevel(network(), SETTINGS, augment=prep.crop_and_mirror())
    images, seen = prep.plain(blobs(12).images), []
    base.model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    chosen = base.draw(blobs(12).labels, draws())
    for _ in range(2):
        for draw in zip(*chosen, strict=True):
            base.loss_of(base.network)(base.parameters, images, *draw)
    views = seen[:5]
    assert all(torch.equal(first, second) for first, second in zip(views, seen[5:], strict=True))
    plain = [images[batch] for batch in chosen[0]]
    assert all((view != whole).flatten(1).any(1).sum() >= 8 for view, whole in zip(views, plain, strict=True))
    low, high = prep.valid_range()
    assert all(((view >= low) & (view <= high)).all() for view in views)
    _, losses = optimised(network(), blobs(12), blobs(90, seed=1), prep=prep, mnemonics_augment=True)
    assert losses["optimised"] < losses["start"]


@pytest.mark.parametrize(("rate", "better"), [(0.05, True), (-0.05, False)])  # down, and up
def test_exemplars_that_became_worse_fall_back_to_the_real_images(rate, better):
    settings, start = dataclasses.replace(SETTINGS, outer_lr=rate), blobs(12)
    made, losses = optimised(network(), start, blobs(90, seed=1), settings, mnemonics_fall_back=True)
    assert (losses["rounded"] < losses["start"]) == better
    assert torch.equal(made.images, start.images) == (not better)
    coded, more = optimised(network(), start, blobs(90, seed=1), settings, exemplar_format="png")  # changes nothing
    assert torch.equal(coded.images, made.images)
    assert more == losses | {"stored": losses["rounded" if better else "start"]}
    always, same = optimised(network(), start, blobs(90, seed=1), settings, mnemonics_fall_back=False)
    assert same == losses
    assert not torch.equal(always.images, start.images)


def test_adjusting_changes_every_old_exemplar_and_helps():
    model, old = network(), blobs(24)
    new = adjusted(model, old)
    assert (new.images != old.images).flatten(1).any(1).all()
    a, b = balanced_subsets(old.labels, 2, draws(5))

    def held_loss(data):
        base = BaseLevel(model, SETTINGS)
        return base.loss_after_steps(network_input(data), network_input(old[b]), base.draw(data.labels, draws()))

    assert held_loss(new[a]) < held_loss(old[a])


def test_each_subset_is_validated_on_the_others(monkeypatch):
    seen = []

    def spy(self, exemplars, validation, draws, epoch):
        own, other = ({row.sum().item() for row in part.images} for part in (exemplars, validation))
        seen.append((len(own), len(other), len(own & other)))
        return torch.zeros(len(exemplars), dtype=torch.bool), torch.zeros_like(exemplars.images), torch.tensor(0.0)

    monkeypatch.setattr(BaseLevel, "gradient", spy)
    settings = dataclasses.replace(SETTINGS, subsets=3, epochs=2)
    adjusted(network(), blobs(27), settings)
    assert seen == [(9, 18, 0)] * 6


def test_an_epoch_can_be_a_pass_through_the_validation_images(monkeypatch):
    """Two epochs of 68 images in batches of 20, 20 and 28; then of old exemplars, a half of 12 in 5 and 7."""
    seen, ends = [], []

    def spy(self, exemplars, validation, draws, epoch):
        seen.append((epoch, validation.images.sum((1, 2, 3)).tolist()))
        return torch.ones(len(exemplars), dtype=torch.bool), torch.zeros_like(exemplars.images), torch.tensor(0.0)

    monkeypatch.setattr(BaseLevel, "gradient", spy)
    monkeypatch.setattr(Pixels, "end_epoch", lambda self: ends.append(len(seen)))
    passes = {"mnemonics_epoch_unit": "pass", "mnemonics_base": "new"}
    data, model = blobs(68, seed=1), network()
    optimised(model, blobs(6), data, dataclasses.replace(SETTINGS, val_batch_size=20, epochs=2), **passes)
    assert [(epoch, len(batch)) for epoch, batch in seen] == [(e, n) for e in (0, 1) for n in (20, 20, 28)]
    first, second = ([*seen[i][1], *seen[i + 1][1], *seen[i + 2][1]] for i in (0, 3))
    assert sorted(first) == sorted(second) == sorted(network_input(data).images.sum((1, 2, 3)).tolist())
    assert first != second
    seen.clear()
    adjusted(model, blobs(24), dataclasses.replace(SETTINGS, val_batch_size=5, epochs=2), **passes)
    assert [(epoch, len(batch)) for epoch, batch in seen] == [(e, n) for e in (0, 1) for n in (5, 7, 5, 7)]
    halves = [set(seen[i][1] + seen[i + 1][1]) for i in range(0, 8, 2)]
    assert [len(half) for half in halves] == [12] * 4
    assert halves[0].isdisjoint(halves[1])
    assert halves[2].isdisjoint(halves[3])
    assert ends == [3, 6, 4, 8]


def test_nothing_to_adjust_in_an_empty_memory_or_with_one_exemplar_per_class(monkeypatch):
    told = []
    monkeypatch.setattr(Progress, "line", lambda self, text: told.append(text))
    for few in (blobs(0), blobs(3)):
        assert adjusted(network(), few).images is few.images
    assert told == ["old exemplars are not adjusted: a class has 1, fewer than the 2 subsets"]


def test_subsets_are_disjoint_complete_balanced_and_random():
    labels = torch.tensor([0] * 6 + [1] * 6 + [2] * 5)
    a, b = balanced_subsets(labels, 2, draws())
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(17))
    assert torch.bincount(labels[a]).tolist() == [3, 3, 3]
    assert torch.bincount(labels[b]).tolist() == [3, 3, 2]
    assert sorted(balanced_subsets(labels, 2, draws(1))[0].tolist()) != sorted(a.tolist())
    assert [len(s) for s in balanced_subsets(labels, 3, draws())] == [6, 6, 5]


def pixels_of(images, **settings):
    return Pixels(images, *PREP.valid_range(), dataclasses.replace(SETTINGS, **settings))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_pixels_are_clamped_to_what_uint8_can_show_and_untouched_rows_stay(optimizer):
    start = PREP.plain(blobs(4).images)
    pixels = pixels_of(start.clone(), optimizer=optimizer, outer_lr=50.0)
    for _ in range(2):
        pixels.step(torch.ones(4, 3, 6, 6), torch.tensor([False, True, False, True]))
    assert torch.equal(pixels.images[[0, 2]], start[[0, 2]])
    low, high = PREP.valid_range()
    assert torch.equal(pixels.images[[1, 3]], low.expand(2, 3, 6, 6))  # black
    for _ in range(4):
        pixels.step(-1000 * torch.ones(1, 3, 6, 6), torch.tensor([True]), torch.tensor([1]))
    assert torch.equal(pixels.images[1], high.expand(3, 6, 6))


@pytest.mark.parametrize(
    ("optimizer", "reference", "fifth"), [("adam", torch.optim.Adam, 2), ("sgd", torch.optim.SGD, 3)]
)
def test_each_image_is_updated_as_by_an_optimiser_of_its_own(optimizer, reference, fifth):
    """Torch's without weight decay, which would pull pixels to the mean colour; one parameter for each image, and no
    gradient for those that are not used. The rate is halved every fifth of the epochs."""
    settings = {"optimizer": optimizer, "outer_lr": 0.01, "epochs": 5 * fifth}
    start = torch.randn(5, 3, 6, 6, generator=draws())
    pixels, rows = pixels_of(start.clone(), **settings), [row.clone() for row in start]
    theirs = reference(rows, lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(theirs, fifth, gamma=0.5)
    pixels.low = pixels.high = None
    for epoch in range(6):
        index = torch.randperm(5, generator=draws(epoch))[:4]
        gradient, used = torch.randn(4, 3, 6, 6, generator=draws(epoch)), torch.arange(4) > epoch % 2
        for row in rows:
            row.grad = None
        for i in range(4):
            rows[index[i]].grad = gradient[i].clone() if used[i] else None
        theirs.step()
        pixels.step(gradient, used, index)
        schedule.step()
        pixels.end_epoch()
        if epoch == 3:
            state = copy.deepcopy(pixels.state_dict())
            pixels = pixels_of(torch.zeros_like(start), **settings)
            pixels.load_state_dict(state)
            pixels.low = pixels.high = None
        assert torch.allclose(pixels.images, torch.stack(rows), rtol=0, atol=1e-6)
    assert (pixels.images - start).flatten(1).abs().amax(1).min() > 0.01


def test_settings_come_from_the_command_line():
    values = "steps 3 lr 0.2 epochs 4 outer_lr 0.5 batch_size 17 optimizer sgd variant unroll-fc subsets 3".split()
    values += "val_batch_size 19 disturb 0.3 memory 7".split()
    flags = [f"--mnemonics_{value}" if i % 2 == 0 else value for i, value in enumerate(values)]
    config = resolved(parse_args([*flags, "--mnemonics_tf32"]))
    assert BilevelSettings.of(config) == BilevelSettings("unroll-fc", 3, 0.2, 17, 19, 4, 0.5, "sgd", 0.3, 3, 7, True)
    assert BilevelSettings.of(resolved(parse_args([]))) == BilevelSettings()
    paper = BilevelSettings.of(resolved(parse_args("--mnemonics_preset paper".split())))
    assert paper == BilevelSettings("unroll", 50, 0.01, 128, 128, 50, 0.01, "sgd", 0.0, 2)


def test_non_finite_loss_is_an_error_that_names_epoch_and_rates():
    settings = dataclasses.replace(SETTINGS, lr=1e30)
    with pytest.raises(NonFiniteLossError, match=r"epoch 0.*--mnemonics_lr 1e\+30.*--mnemonics_outer_lr 0.05"):
        optimised(network(), blobs(12), blobs(30, seed=1), settings)
