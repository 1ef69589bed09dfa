"""The model level: training on D_i and the exemplars (Eq. 6), fine-tuning on the exemplars at the end of a phase."""

import math
import time
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mnemonics.baselines.base import Baseline
from mnemonics.config import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing, TrainingBatches, balanced_batches, training_batches
from mnemonics.distributed import no_bar, world
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.protocol import Phase
from mnemonics.replay import replayable
from mnemonics.runlog import RunLog
from mnemonics.runtime import NonFiniteLossError, autocast
from mnemonics.whole_batch import loss_function


def train_phase(
    model: nn.Module,
    baseline: Baseline,
    phase: Phase,
    data: LabelledImages,
    prep: Preprocessing,
    config: ExperimentConfig,
    generator: torch.Generator,
    log: RunLog,
) -> None:
    """Train `model` in place on `data` = D_i and the exemplars, by SGD whose rate drops tenfold at --lr_drops of the
    epochs (80 and 120 of the paper's 160).

    Raises:
        NonFiniteLossError: when the loss of an epoch is NaN or infinite.
    """
    batches = training_batches(data, prep)
    optimizer, step = sgd_step(model, baseline, batches, config)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones(config.epochs, config.lr_drops))
    steps = math.ceil(len(data) / config.train_batch_size)
    model.train()
    start = time.perf_counter()
    with tqdm(total=config.epochs * steps, desc=f"phase {phase.index} training", leave=False, disable=no_bar()) as bar:
        for epoch in range(config.epochs):
            loss = train_epoch(step, batches.epoch(config.train_batch_size, generator), bar) / len(data)
            report_epoch(log, phase, epoch, loss, float(optimizer.param_groups[0]["lr"]), config.epochs)
            schedule.step()
    rate = config.epochs * len(data) / (time.perf_counter() - start)
    log.line(
        f"phase {phase.index}: {config.epochs} epochs of {len(data)} images, last loss {loss:.4f}, {rate:.0f} images/s"
    )


def milestones(epochs: int, shares: str) -> list[int]:
    """Epochs after which the learning rate drops: such shares ("1/2,3/4") of all, rounded up so that a drop never comes
    before its share of the epochs is done."""
    return [math.ceil(epochs * Fraction(share)) for share in shares.split(",")]


def sgd_step(
    model: nn.Module, baseline: Baseline, batches: TrainingBatches, config: ExperimentConfig
) -> tuple[torch.optim.Optimizer, Callable[..., Tensor]]:
    """The optimiser, and one step: what `batches.epoch` gives for a batch -> loss, detached.

    On a CUDA device the step, the forward pass of the teacher included, is replayed as a CUDA graph, unless there are
    several processes. Its learning rate is a tensor there, so that the schedule reaches into the graph.
    """
    device, cuda = batches.data.labels.device, batches.data.labels.is_cuda
    parameters = baseline.parameters(model)
    rate = torch.tensor(config.base_lr, device=device) if cuda else config.base_lr
    momentum, decay = config.custom_momentum, config.custom_weight_decay
    optimizer = torch.optim.SGD(parameters, rate, momentum=momentum, weight_decay=decay, fused=cuda)
    loss_of = loss_function(model, baseline)
    for p in parameters if momentum else ():
        # there from the start, so that a graph can update it
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)

    def step(*batch: Tensor) -> Tensor:
        with autocast(config, device):
            loss = loss_of(*batches.network_input(*batch))
        model.zero_grad(set_to_none=True)  # also what is not optimised but has a gradient
        loss.backward()
        optimizer.step()
        return loss.detach()

    def changed() -> list[Tensor]:
        momenta = [optimizer.state[p]["momentum_buffer"] for p in parameters if momentum]
        return [*parameters, *model.buffers(), *momenta]

    return optimizer, replayable(step, changed, enabled=cuda and world() == 1)


def train_epoch(step: Callable[..., Tensor], draws: Iterable[tuple[Tensor, ...]], bar: tqdm) -> float:
    """Take a step for each of `draws`. Returns the sum of the losses of all images."""
    total = None  # kept on the device: reading a loss each step would stall a GPU
    for number, draw in enumerate(draws):
        loss = step(*draw)
        images = len(draw[-1])  # of the whole batch: its labels, or one of its draws
        total = loss * images if total is None else total + loss * images
        bar.update()
        if number % 50 == 0 and not bar.disable:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return total.item()


def report_epoch(log: RunLog, phase: Phase, epoch: int, loss: float, rate: float, epochs: int) -> None:
    step = phase.index * epochs + epoch
    log.scalar("train/loss", loss, step)
    log.scalar("train/learning_rate", rate, step)
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"epoch {epoch}: the training loss is {loss} with learning rate {rate:g}; a lower --base_lr may help"
        )


def finetune_on_exemplars(
    model: nn.Module, memory: ExemplarMemory, prep: Preprocessing, config: ExperimentConfig, generator: torch.Generator
) -> None:
    """Fine-tune `model` in place on the class-balanced exemplars, which takes away its bias toward the new classes.

    This is what the base level of the exemplar optimisation (Eq. 8) rehearses, so it is the same thing: cross-entropy,
    plain SGD on all weights, class-balanced batches, BatchNorm statistics fixed, augmented only if that is.
    """
    data = memory.data
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), config.finetune_lr)
    model.eval()
    steps = config.finetune_epochs * math.ceil(len(data) / config.mnemonics_batch_size)
    batches = balanced_batches(data.labels, config.mnemonics_batch_size, steps, generator)
    augment = prep.crop_and_mirror()
    for batch in tqdm(batches, total=steps, desc="fine-tuning", leave=False, disable=no_bar()):
        images = prep.plain(data.images[batch])
        if config.mnemonics_augment:
            images = augment.apply(images, *augment.draw(len(batch), generator))
        loss = F.cross_entropy(model(images), data.labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
