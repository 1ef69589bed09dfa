"""The model level: schedule, steps, fine-tuning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contexts import context

from mnemonics import training
from mnemonics.baselines import BASELINES
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.augment import Crops
from mnemonics.data.batches import LabelledImages, Preprocessing, ResidentBatches, batch_sizes
from mnemonics.engine.progress import Progress
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings
from mnemonics.exemplars.unroll import Layout, Steps
from mnemonics.models import make_network

PREP = Preprocessing(torch.full((3,), 0.5), torch.full((3,), 0.25), 1, False)


class SilentLog:
    def __init__(self):
        self.scalars = {}

    def line(self, text):
        pass

    def scalar(self, name, value, step):
        self.scalars.setdefault(name, {})[step] = value


def colours(n=40, classes=5):
    """Each class is one grey level, with noise."""
    labels = torch.arange(n) % classes
    noise = torch.randint(-8, 9, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return LabelledImages((labels[:, None, None, None] * 50 + 20 + noise).to(torch.uint8), labels)


def network(seed=0):
    torch.manual_seed(seed)
    return make_network("resnet8", 5, torch.device("cpu"))


def train(config, data=None, model=None):
    log, model = SilentLog(), model or network()
    phase = context(PREP, config, progress=Progress(log=log))
    training.train_phase(phase, model, BASELINES["lwf"](phase.config), data or colours())
    return model, log


def test_rate_drops_after_half_and_three_quarters_of_the_epochs():
    _, log = train(ExperimentConfig(epochs=8, train_batch_size=40))
    rates = [round(rate, 6) for rate in log.scalars["train/learning_rate"].values()]
    assert rates == [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    assert training.milestones(160, "1/2,3/4") == [80, 120]
    assert training.milestones(90, "1/2,3/4") == [45, 68]
    assert training.milestones(90, "1/3,2/3") == [30, 60]


def test_later_phases_may_have_epochs_of_their_own():
    config = ExperimentConfig(epochs=2, later_epochs=4, train_batch_size=40)
    assert [training.epochs_of(config, phase) for phase in (0, 1, 5)] == [2, 4, 4]
    assert [training.epochs_of(ExperimentConfig(epochs=2), phase) for phase in (0, 1)] == [2, 2]
    rates = {}
    for phase in (0, 1, 2):
        log = SilentLog()
        at = context(PREP, config, phase=phase, progress=Progress(log=log))
        training.train_phase(at, network(), BASELINES["lwf"](at.config), colours())
        rates |= {epoch: round(rate, 6) for epoch, rate in log.scalars["train/learning_rate"].items()}
    assert rates == dict(enumerate([0.1, 0.01] + 2 * [0.1, 0.1, 0.01, 0.001]))


def test_the_first_step_is_momentum_sgd_with_weight_decay_on_the_loss():
    """One batch of everything: the weights after it by hand."""
    config = ExperimentConfig(epochs=1, train_batch_size=64, base_lr=0.2, custom_weight_decay=0.01)
    model, start = network(), network()
    train(config, model=model)
    start.train()
    order, *crops = next(ResidentBatches(colours(), PREP).epoch([40], context(PREP).generator("training")))
    data = colours()[order]
    F.cross_entropy(start(PREP.augmented(data.images, Crops(*crops))), data.labels).backward()
    for trained, p in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.allclose(trained, p - 0.2 * (p.grad + 0.01 * p), atol=1e-6)


@pytest.mark.parametrize("augmented", [False, True])
def test_finetuning_is_what_the_unroll_rehearses(augmented):
    config = ExperimentConfig(finetune_epochs=3, finetune_lr=0.05, mnemonics_batch_size=16, finetune_augment=augmented)
    data, model, phase = colours(), network(), context(PREP, config)
    model.train()(PREP.plain(colours().images))
    rehearsal = copy.deepcopy(model).eval()
    training.finetune_on_exemplars(phase, model, data)
    x = PREP.plain(data.images)
    settings = BilevelSettings(steps=9, lr=0.05, batch_size=16)  # 3 epochs of ceil(40 / 16)
    base = BaseLevel(rehearsal, settings, augment=PREP.crop_and_mirror() if augmented else None)
    draws = base.draw(data.labels, phase.generator("fine-tuning"))
    steps, schedule = Steps(base.loss_of(base.model), Layout(base.parameters)), base.schedule(draws, x)
    start = steps.layout.flatten(base.parameters)
    state = steps.state(start, x, schedule)
    steps.run(state, schedule, (start, None), keep=False)
    rehearsed = steps.layout.unflatten(state.points[-1])
    for name, p in model.named_parameters():
        assert torch.allclose(p, rehearsed[name], atol=1e-6), name
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), rehearsal.buffers(), strict=True))


def test_finetuning_takes_away_the_bias_to_new_classes():
    model, data = network(), colours(200)
    lopsided = LabelledImages(torch.cat([data.images, data.images[data.labels == 4].repeat(20, 1, 1, 1)]),
                              torch.cat([data.labels, data.labels[data.labels == 4].repeat(20)]))  # fmt: skip
    train(ExperimentConfig(epochs=1, train_batch_size=64), lopsided, model)
    config = ExperimentConfig(finetune_epochs=20, finetune_lr=0.1, mnemonics_batch_size=32)

    def share_of_new():
        return (model.eval()(PREP.plain(data.images)).argmax(1) == 4).float().mean().item()

    before = share_of_new()
    training.finetune_on_exemplars(context(PREP, config), model, colours(50))
    assert before > 0.25
    assert share_of_new() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("images", "join", "keep", "drop"),
    [
        (10, [4, 4, 2], [4, 4, 2], [4, 4]),  # half a batch stays one
        (9, [4, 5], [4, 5], [4, 4]),  # a single image never does
        (7, [4, 3], [4, 3], [4]),
        (3, [3], [3], [3]),  # fewer than a batch are one
        (8, [4, 4], [4, 4], [4, 4]),
    ],
)
def test_what_becomes_of_the_rest_of_an_epoch(images, join, keep, drop):
    sizes = {how: batch_sizes(images, 4, how) for how in ("join", "keep", "drop")}
    assert sizes == {"join": join, "keep": keep, "drop": drop}


def test_a_small_rest_is_a_batch_only_if_it_is_kept():
    assert batch_sizes(130, 128, "join") == [130]
    assert batch_sizes(130, 128, "keep") == [128, 2]
    seen = {}
    for how in ("join", "keep", "drop"):
        sizes, model = [], network()
        model.register_forward_pre_hook(lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        train(ExperimentConfig(epochs=2, train_batch_size=19, last_batch=how), model=model)
        seen[how] = sizes
    assert seen == {"join": [19, 21] * 2, "keep": [19, 19, 2] * 2, "drop": [19, 19] * 2}
