"""Losses against numbers worked out by hand, and what else a baseline does."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnemonics.baselines import BASELINES
from mnemonics.baselines.base import distillation_scale
from mnemonics.baselines.bic import BiC, fit_correction, soft_cross_entropy
from mnemonics.baselines.lucir import LUCIR, less_forget, margin_ranking
from mnemonics.baselines.lwf import LwF, distillation
from mnemonics.baselines.plain import Finetune, Joint
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.evaluation import features_of
from mnemonics.models import make_network
from mnemonics.models.layers import SplitCosineLinear
from mnemonics.protocol import class_order, make_protocol

PREP = Preprocessing(torch.full((3,), 0.5), torch.full((3,), 0.25), 1, False)
PHASES = make_protocol(class_order(10, 1993), [4, 2, 2, 2]).phases
IMAGES = torch.zeros(1, 3, 2, 2)


class Fixed(nn.Module):
    """A network whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits


class FixedFeatures(nn.Module):
    """A network whose features are given, and its classifier."""

    def __init__(self, features, classifier=None):
        super().__init__()
        self.given, self.classifier = torch.tensor(features), classifier

    def features(self, images):
        return self.given


def images_of(labels, seed=0):
    """Noise with these labels."""
    pixels = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return LabelledImages(pixels.to(torch.uint8), torch.tensor(labels))


def network(phase=1, baseline=None):
    """A network after `begin_phase` of each phase up to this one, and the baseline."""
    torch.manual_seed(0)
    baseline, model = baseline or LwF(ExperimentConfig()), make_network("resnet8", 4, torch.device("cpu"))
    for i in range(phase + 1):
        baseline.begin_phase(model, PHASES[i], images_of(sorted([*PHASES[i].new_labels] * 3)), PREP)
    return model, baseline


# softened outputs at T = 2 are (2/3, 1/3) for the student and (1/5, 4/5) for the teacher
STUDENT, TEACHER = [2 * math.log(2), 0.0], [0.0, 2 * math.log(4)]
KL = 0.2 * math.log(0.2 / (2 / 3)) + 0.8 * math.log(0.8 / (1 / 3))
SOFT_CE = -0.2 * math.log(2 / 3) - 0.8 * math.log(1 / 3)


def test_distillation_is_the_mean_over_elements():
    value = distillation(torch.tensor([STUDENT]), torch.tensor([TEACHER]), 2.0)
    assert value.item() == pytest.approx(KL / 2)  # two classes: half of the divergence, not all of it
    twice = distillation(torch.tensor([STUDENT] * 3), torch.tensor([TEACHER] * 3), 2.0)
    assert twice.item() == pytest.approx(KL / 2)


def test_lwf_loss_by_hand():
    lwf = LwF(ExperimentConfig(T=2.0, beta=0.25))
    lwf.teacher = Fixed([TEACHER])
    new_logit = 0.5
    loss = lwf.loss(Fixed([[*STUDENT, new_logit]]), IMAGES, torch.tensor([2]))
    cross_entropy = math.log(4 + 1 + math.exp(new_logit)) - new_logit
    assert loss.item() == pytest.approx(cross_entropy + 0.25 * 2.0**2 * 2 * KL / 2, rel=1e-6)


@pytest.mark.parametrize("name", ["lwf", "icarl", "bic", "replay", "finetune", "joint"])
def test_phase_0_is_plain_cross_entropy(name):
    loss = BASELINES[name](ExperimentConfig()).loss(Fixed([STUDENT]), IMAGES, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(5 / 4))


def test_headline_classifiers():
    assert {name for name, b in BASELINES.items() if b.headline == "nme"} == {"icarl"}
    assert {b.headline for name, b in BASELINES.items() if name != "icarl"} == {"cnn"}


def test_teacher_is_a_frozen_copy_of_the_model_before_it_grows():
    baseline, x = LwF(ExperimentConfig()), torch.randn(2, 3, 8, 8)
    model, _ = network(0, baseline)
    assert baseline.teacher is None
    before = model.eval()(x)
    baseline.begin_phase(model, PHASES[1], images_of([4, 5]), PREP)
    assert torch.equal(baseline.teacher(x), before)
    assert torch.allclose(model(x)[:, :4], before)
    assert model(x).shape == (2, 6)
    assert not baseline.teacher.training
    assert not any(p.requires_grad for p in baseline.teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert torch.equal(baseline.teacher(x), before)


@pytest.mark.parametrize("name", BASELINES)
def test_weight_transfer_works_with_every_baseline(name):
    baseline = BASELINES[name](ExperimentConfig(weight_transfer=True))
    model, _ = network(2, baseline)
    names = {n for n, p in model.named_parameters() if p.requires_grad and "conv" in n}
    assert names == {n for n, _ in model.named_parameters() if n.endswith("factor") and "conv" in n}
    trained = {id(p) for p in baseline.parameters(model)}
    assert id(model.conv1.weight) not in trained
    assert {id(model.conv1.factor), id(model.bn1.weight), id(model.bn1.bias)} <= trained


# LUCIR


def test_less_forget_is_one_minus_cosine_averaged_over_images():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    teacher = torch.tensor([[0.0, 9.0], [0.0, 0.1], [-1, -1]])
    assert less_forget(student, teacher).item() == pytest.approx((1 + 0 + 2) / 3)


def test_margin_ranking_by_hand():
    cosines = torch.tensor(
        [
            [0.9, 0.1, 0.6, 0.5, -0.2],  # own 0.9: margin 0.5 is short of it by 0.2 for 0.6 and by 0.1 for 0.5
            [0.3, 0.2, 0.1, -0.9, -0.8],  # own 0.2: by 0.4 for 0.1; -0.8 is far enough away
            [0.9, 0.9, 0.1, 0.2, 0.3],  # of a new class: takes no part
        ]
    )
    labels = torch.tensor([0, 1, 3])
    assert margin_ranking(cosines, labels, 2, 2, 0.5).item() == pytest.approx((0.2 + 0.1 + 0.4 + 0) / 4)
    assert margin_ranking(cosines, labels, 2, 1, 0.5).item() == pytest.approx((0.2 + 0.4) / 2)
    everything = (0.2 + 0.1 + 0 + 0.4 + 0 + 0) / 6  # fewer new classes than K: all of them
    assert margin_ranking(cosines, labels, 2, 7, 0.5).item() == pytest.approx(everything)
    assert margin_ranking(cosines[2:], labels[2:], 2, 2, 0.5).item() == 0


def test_lucir_loss_by_hand():
    lucir = LUCIR(ExperimentConfig(lamda=5.0, lw_mr=3.0, dist=0.5, K=2))
    classifier = SplitCosineLinear(2, 2, 1)
    with torch.no_grad():
        classifier.old_weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 0.5]]))
        classifier.new_weight.copy_(torch.tensor([[3.0, 4.0]]))
        classifier.sigma.fill_(2.0)
    # cosines of (1, 0): 1, 0, 0.6; of (0, 3): 0, 1, 0.8. Their teacher features have cosines 1 and 0 with them.
    model = FixedFeatures([[1.0, 0.0], [0.0, 3.0]], classifier)
    lucir.teacher = FixedFeatures([[7.0, 0.0], [1.0, 0.0]])
    loss = lucir.loss(model, IMAGES, torch.tensor([0, 2]))
    first, second = ([2 * c for c in row] for row in ([1, 0, 0.6], [0, 1, 0.8]))
    cross_entropy = [math.log(sum(map(math.exp, row))) - row[label] for row, label in ((first, 0), (second, 2))]
    forgetting, ranking = (0 + 1) / 2, max(0, 0.5 - 1 + 0.6)
    expected = sum(cross_entropy) / 2 + 5 * math.sqrt(2 / 1) * forgetting + 3 * ranking
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_more_complete_memory_weakens_the_distillation():
    phase = PHASES[1]
    assert distillation_scale(phase, new=50, old=0) == 1
    shares = [distillation_scale(phase, new=50, old=old) for old in (10, 50)]
    assert shares == pytest.approx([1 - (old / (50 + old)) / (phase.first / phase.seen) for old in (10, 50)])
    complete = 50 * phase.first // len(phase.new_labels)
    assert distillation_scale(phase, 50, complete) == pytest.approx(0)
    assert distillation_scale(phase, 50, 2 * complete) == 0


@pytest.mark.parametrize("name", ["lucir", "lwf", "icarl"])
def test_the_scale_weighs_the_distillation_alone(name):
    baseline, labels = BASELINES[name](ExperimentConfig(lamda=5.0, lw_mr=0.0)), torch.tensor([0, 4, 5])
    model, _ = network(1, baseline)
    x, losses = torch.randn(3, 3, 8, 8), []
    with torch.no_grad():  # it has moved away from its teacher
        model.classifier.old_weight.neg_()
        next(model.parameters()).mul_(torch.linspace(-1, 1, 16)[:, None, None, None])
    for baseline.scale in (0.0, 0.25, 1.0):
        losses.append(baseline.loss(model.eval(), x, labels).item())
    assert losses[0] == pytest.approx(F.cross_entropy(model(x), labels).item(), rel=1e-6)
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 4, rel=1e-4)
    assert losses[2] > losses[0]


def test_lucir_phase_0_is_cross_entropy():
    model, x = make_network("resnet8", 4, torch.device("cpu")), torch.randn(3, 3, 8, 8)
    labels = torch.tensor([0, 3, 2])
    assert torch.equal(LUCIR(ExperimentConfig()).loss(model.eval(), x, labels), F.cross_entropy(model(x), labels))


@pytest.mark.parametrize("baseline", ["lucir", "lwf", "icarl"])
def test_imprinting_sets_the_weights_of_new_classes_and_fixes_those_of_old_ones_in_training(baseline):
    plain, baseline = BASELINES[baseline](ExperimentConfig()), BASELINES[baseline](ExperimentConfig(imprint=True))
    assert plain.imprints == isinstance(plain, LUCIR)
    model, _ = network(0, baseline)
    with torch.no_grad():
        model.classifier.weight.mul_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    data = images_of([4, 5, 4, 5, 5], seed=3)
    features = F.normalize(features_of(model, data.images, PREP, 2).double(), dim=1)
    baseline.begin_phase(model, PHASES[1], data, PREP)
    new, old = model.classifier.new_weight, model.classifier.old_weight
    for row, members in enumerate(([0, 2], [1, 3, 4])):
        mean = features[members].mean(0)
        assert torch.allclose(F.normalize(new[row], dim=0).double(), mean / mean.norm(), atol=1e-6)
    assert torch.allclose(new.norm(dim=1), old.norm(dim=1).mean().expand(2))
    trained = {id(p) for p in baseline.parameters(model)}
    assert trained == {id(p) for p in model.parameters()} - {id(old)}
    assert old.requires_grad  # the end-of-phase fine-tuning trains all weights


# BiC


def test_soft_cross_entropy_is_the_mean_over_the_batch_without_temperature_factor():
    value = soft_cross_entropy(torch.tensor([STUDENT, TEACHER]), torch.tensor([TEACHER, TEACHER]), 2.0)
    entropy = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert value.item() == pytest.approx((SOFT_CE + entropy) / 2)


def test_bic_loss_by_hand():
    bic = BiC(ExperimentConfig(T=2.0))
    bic.teacher = Fixed([TEACHER])
    loss = bic.loss(Fixed([[*STUDENT, 0.5]]), IMAGES, torch.tensor([2]))
    cross_entropy = math.log(4 + 1 + math.exp(0.5)) - 0.5
    assert loss.item() == pytest.approx(cross_entropy / 3 + 2 / 3 * SOFT_CE, rel=1e-6)


def test_bic_holds_out_a_tenth():
    bic = BiC(ExperimentConfig())
    assert {quota: bic.held_out(quota) for quota in (1, 2, 9, 20, 29, 40)} == {1: 0, 2: 1, 9: 1, 20: 2, 29: 2, 40: 4}
    assert all(BASELINES[name](ExperimentConfig()).held_out(20) == 0 for name in BASELINES if name != "bic")


def test_the_fitted_correction_is_the_minimum():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]  # so these logits are the right ones
    biased = torch.cat([logits[:, :3], (logits[:, 3:] + 1.5) / 0.5], dim=1)
    scale, shift = fit_correction(biased, labels, 2)

    def loss(scale, shift):
        corrected = torch.cat([biased[:, :3], scale * biased[:, 3:] + shift], dim=1)
        return F.cross_entropy(corrected.double(), labels).item()

    assert scale == pytest.approx(0.5, abs=0.1)
    assert shift == pytest.approx(-1.5, abs=0.4)
    for other in ((scale + 0.1, shift), (scale - 0.1, shift), (scale, shift + 0.2), (scale, shift - 0.2), (1, 0)):
        assert loss(scale, shift) < loss(*other)


def test_the_correction_stays_finite_on_separable_images():
    logits = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    assert all(abs(value) < 100 for value in fit_correction(logits, torch.tensor([0, 1]), 1))


def test_the_correction_of_earlier_phases_is_kept_and_counts_in_distillation():
    bic, x = BiC(ExperimentConfig()), torch.randn(3, 3, 8, 8)
    model, _ = network(1, bic)
    uncorrected = model.eval()(x)
    bic.calibrate(model, images_of([0, 1, 2, 3, 4, 5] * 2), PREP)
    scale, shift = model.classifier.scale.clone(), model.classifier.shift.clone()
    assert torch.equal(scale[:4], torch.ones(4))
    assert torch.equal(shift[:4], torch.zeros(4))
    assert scale[4] == scale[5] != 1
    assert torch.allclose(model(x), scale * uncorrected + shift, atol=1e-6)
    corrected = model(x)
    bic.calibrate(model, images_of([0, 1, 2, 3, 4, 5] * 2), PREP)  # fitted anew, not on top of itself
    assert torch.allclose(model.classifier.scale, scale)
    bic.begin_phase(model, PHASES[2], images_of([6, 7]), PREP)
    assert torch.allclose(bic.teacher(x), corrected)
    assert torch.allclose(model.eval()(x)[:, :6], corrected, atol=1e-6)
    bic.calibrate(model, images_of([*range(8)] * 2, seed=1), PREP)
    assert torch.equal(model.classifier.scale[:6], scale)
    assert model.classifier.scale[6] == model.classifier.scale[7] != 1


def test_bic_without_held_out_images_is_not_corrected():
    bic = BiC(ExperimentConfig())
    model, _ = network(1, bic)
    before = copy.deepcopy(model.state_dict())
    bic.calibrate(model, images_of([0])[:0], PREP)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# bounds


def test_bounds_are_cross_entropy_in_every_phase():
    for bound, rehearsed in ((Finetune, "nothing"), (Joint, "everything")):
        baseline = bound(ExperimentConfig())
        baseline.teacher = Fixed([TEACHER])
        assert baseline.loss(Fixed([STUDENT]), IMAGES, torch.tensor([0])).item() == pytest.approx(math.log(5 / 4))
        assert baseline.rehearses == rehearsed
