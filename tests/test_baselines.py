"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from mnemonics.baselines import BASELINES
from mnemonics.baselines.lwf import LwF, distillation
from mnemonics.config import ExperimentConfig
from mnemonics.models import make_network
from mnemonics.protocol import make_protocol


class Fixed(nn.Module):
    """A network whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits


# softened outputs at T = 2 are (2/3, 1/3) for the student and (1/5, 4/5) for the teacher
STUDENT, TEACHER = [2 * math.log(2), 0.0], [0.0, 2 * math.log(4)]
KL = 0.2 * math.log(0.2 / (2 / 3)) + 0.8 * math.log(0.8 / (1 / 3))


def test_distillation_is_the_mean_over_elements():
    value = distillation(torch.tensor([STUDENT]), torch.tensor([TEACHER]), 2.0)
    assert value.item() == pytest.approx(KL / 2)  # two classes: half of the divergence, not all of it
    twice = distillation(torch.tensor([STUDENT] * 3), torch.tensor([TEACHER] * 3), 2.0)
    assert twice.item() == pytest.approx(KL / 2)


def test_lwf_loss_by_hand():
    lwf = LwF(ExperimentConfig(T=2.0, beta=0.25))
    lwf.teacher = Fixed([TEACHER])
    new_logit = 0.5
    loss = lwf.loss(Fixed([[*STUDENT, new_logit]]), torch.zeros(1, 3, 2, 2), torch.tensor([2]))
    cross_entropy = math.log(4 + 1 + math.exp(new_logit)) - new_logit
    assert loss.item() == pytest.approx(cross_entropy + 0.25 * 2.0**2 * 2 * KL / 2, rel=1e-6)


def test_phase_0_is_plain_cross_entropy():
    loss = LwF(ExperimentConfig()).loss(Fixed([STUDENT]), torch.zeros(1, 3, 2, 2), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(5 / 4))


def test_headline_classifiers():
    assert {name: b.headline for name, b in BASELINES.items()} == {"icarl": "nme", "lwf": "cnn"}


def test_teacher_is_a_frozen_copy_of_the_model_before_it_grows():
    baseline, protocol = LwF(ExperimentConfig()), make_protocol(10, 5, 1, 1993)
    model, x = make_network("resnet8", 5, torch.device("cpu")), torch.randn(2, 3, 8, 8)
    baseline.begin_phase(model, protocol.phases[0])
    assert baseline.teacher is None
    before = model.eval()(x)
    baseline.begin_phase(model, protocol.phases[1])
    assert torch.equal(baseline.teacher(x), before)
    assert torch.allclose(model(x)[:, :5], before)
    assert model(x).shape == (2, 6)
    assert not baseline.teacher.training
    assert not any(p.requires_grad for p in baseline.teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert torch.equal(baseline.teacher(x), before)
