"""What is captured as a CUDA graph must be work of the device alone: reading a value back, or making a tensor of one,
breaks the capture. Looked for here on any machine, among the operations of the steps on the CPU."""

import dataclasses
import itertools

import pytest
import torch
from contexts import PROTOCOL, resolved
from test_fast_path import BATCH, CPU, images, network, preprocessing
from torch.utils._python_dispatch import TorchDispatchMode

from mnemonics import training
from mnemonics.baselines import BASELINES
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, ResidentBatches
from mnemonics.engine import device as runtime
from mnemonics.exemplars import base_level as of_exemplars
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings
from mnemonics.exemplars.meta_level import Pixels
from mnemonics.models import layers

HOST = {
    "aten::lift_fresh": "makes a tensor of a number",
    "aten::_local_scalar_dense": "reads a value",
    "aten::nonzero": "reads how many there are",
    "aten::masked_select": "reads how many there are",
    "aten::repeat_interleave": "reads how many there are",
    "aten::_unique2": "reads how many there are",
    "aten::bincount": "reads the largest",
}


class Operations(TorchDispatchMode):
    """Collects what would need the host."""

    def __init__(self):
        super().__init__()
        self.count, self.of_host = 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        name = operation.name().split(".")[0]
        if name in HOST:
            self.of_host.append(f"{name} {HOST[name]}")
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            self.of_host += [f"{name} by a mask reads how many there are" for _ in masks]
        return operation(*args, **(kwargs or {}))


def of_host(function, *inputs):
    """What `function` does on the host."""
    with Operations() as operations:
        function(*inputs)
    assert operations.count > 20
    return operations.of_host


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.tensor([1.0]),
        lambda x: torch.as_tensor(0, dtype=torch.uint8),
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 2).nonzero(),
        lambda x: x.__setitem__(x > 0, torch.zeros(())),
    ],
)
def test_such_work_is_found(work):
    x = torch.arange(-2.0, 3.0)
    with Operations() as operations:
        work(x)
    assert operations.of_host


@pytest.mark.parametrize("weight_transfer", [False, True])
@pytest.mark.parametrize(("name", "phases"), [*itertools.product(BASELINES, [1, 2]), ("bic", 3), ("lucir", 3)])
def test_training_step(name, phases, weight_transfer):
    config = resolved(ExperimentConfig(baseline=name, amp="on", weight_transfer=weight_transfer))
    model, baseline = network().to(memory_format=torch.channels_last), BASELINES[name](config)
    for phase in PROTOCOL.phases[:phases]:
        new = images(20)
        new.labels.fill_(phase.seen - 1)
        baseline.begin_phase(model, phase, new, preprocessing())
    batches = ResidentBatches(images(2 * BATCH), preprocessing())
    _, step = training.sgd_step(model.train(), baseline, batches, config)
    (draw,) = itertools.islice(batches.epoch([BATCH], torch.Generator().manual_seed(1)), 1)
    assert of_host(step, *draw) == []


def test_statistics_of_a_batch_that_processes_share(monkeypatch):
    monkeypatch.setattr(layers, "stacked", lambda own: own[None])
    x = torch.arange(24.0).view(2, 3, 2, 2)
    with Operations() as operations:
        mean, _, count = layers.whole_batch_statistics(x)
    assert (operations.of_host, count.item(), torch.equal(mean, x.mean((0, 2, 3)))) == ([], 8, True)


@pytest.mark.parametrize(("name", "defaults"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_the_chosen_gpu_is_the_default_one_where_graphs_are_captured(name, defaults, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    runtime.prepare(torch.device(name), deterministic=False)
    assert (chosen, torch.backends.cudnn.benchmark) == (defaults, name != "cpu")
    runtime.prepare(CPU, deterministic=False)  # what all other tests run with


@pytest.fixture(params=[False, True], ids=["", "old"])
def base_level(request):
    """A base level, exemplars, and draws for its steps; on exemplars of old classes too, or not."""
    exemplars, other = images(10), images(20)
    exemplars = LabelledImages(preprocessing().plain(exemplars.images), exemplars.labels)
    fixed = LabelledImages(preprocessing().plain(other.images), other.labels) if request.param else None
    base = BaseLevel(network(), BilevelSettings(steps=2), fixed, preprocessing().crop_and_mirror())
    return base, exemplars, base.draw(exemplars.labels, torch.Generator(CPU).manual_seed(0))


def test_steps_of_the_exemplar_optimisation(base_level):
    base, exemplars, draws = base_level
    steps, schedule = base.steps_for(exemplars.images, draws), base.schedule(draws, exemplars.images)
    θ = steps.layout.flatten(base.parameters)
    state = steps.state(θ, exemplars.images, schedule)
    state.begin(schedule, θ, None)
    assert of_host(steps.forward, state) == []
    assert of_host(steps.reverse, state) == []


def test_tf32_is_for_the_gradients_of_exemplars_alone(base_level, monkeypatch):
    (base, exemplars, draws), seen, loss = base_level, [], of_exemplars.own_loss

    def recorded(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return loss(*arguments)

    monkeypatch.setattr(of_exemplars, "own_loss", recorded)
    runtime.prepare(CPU, deterministic=False)
    for allowed in (False, True):
        base.settings = dataclasses.replace(base.settings, tf32=allowed)
        base.gradient(exemplars, exemplars, draws, 0)
        base.loss_after_steps(exemplars, exemplars, draws)
    assert seen == [False, False, True, False]


def test_an_update_of_exemplars_looks_at_the_device_once(base_level):
    """For a loss that is not finite; a second time for the curve of the losses."""
    base, exemplars, _ = base_level
    pixels, generator = Pixels(exemplars.images, None, None, base.settings), torch.Generator(CPU).manual_seed(0)

    def update():
        base.disturb(generator)
        draws = base.draw(exemplars.labels, generator)
        used, gradient, _ = base.gradient(exemplars, exemplars, draws, 0)
        pixels.step(gradient, used)

    assert of_host(update) == ["aten::_local_scalar_dense reads a value"]
