"""The model level: training on D_i and the exemplars (Eq. 6), fine-tuning on the exemplars at the end of a phase."""

import math
import time

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from mnemonics.baselines.base import Baseline
from mnemonics.config import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing, balanced_batches, shuffled_batches
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.protocol import Phase
from mnemonics.runlog import RunLog
from mnemonics.runtime import NonFiniteLossError


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
    """Train `model` in place on `data` = D_i and the exemplars, by SGD whose rate drops tenfold at 50% and 75% of the
    epochs (80 and 120 of the paper's 160).

    Raises:
        NonFiniteLossError: when the loss of an epoch is NaN or infinite.
    """
    optimizer = torch.optim.SGD(
        baseline.parameters(model),
        config.base_lr,
        momentum=config.custom_momentum,
        weight_decay=config.custom_weight_decay,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones(config.epochs))
    steps = math.ceil(len(data) / config.train_batch_size)
    model.train()
    start = time.perf_counter()
    with tqdm(total=config.epochs * steps, desc=f"phase {phase.index} training", leave=False, disable=None) as bar:
        for epoch in range(config.epochs):
            loss = train_epoch(model, baseline, optimizer, data, prep, config, generator, bar)
            report_epoch(log, phase, epoch, loss, optimizer.param_groups[0]["lr"], config.epochs)
            schedule.step()
    rate = config.epochs * len(data) / (time.perf_counter() - start)
    log.line(
        f"phase {phase.index}: {config.epochs} epochs of {len(data)} images, last loss {loss:.4f}, {rate:.0f} images/s"
    )


def milestones(epochs: int) -> list[int]:
    """Epochs after which the learning rate drops: a half and three quarters of all, rounded up so that a drop never
    comes before its share of the epochs is done."""
    return [math.ceil(epochs * 0.5), math.ceil(epochs * 0.75)]


def train_epoch(
    model: nn.Module,
    baseline: Baseline,
    optimizer: torch.optim.Optimizer,
    data: LabelledImages,
    prep: Preprocessing,
    config: ExperimentConfig,
    generator: torch.Generator,
    bar: tqdm,
) -> float:
    """One pass over `data`. Returns the mean loss of the images."""
    total = torch.zeros((), device=data.labels.device)  # summed on the device: reading it each step would stall a GPU
    for step, batch in enumerate(shuffled_batches(data, config.train_batch_size, generator)):
        loss = baseline.loss(model, prep.augmented(batch.images, generator), batch.labels)
        model.zero_grad(set_to_none=True)  # also what is not optimised but has a gradient
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(batch)
        bar.update()
        if step % 50 == 0 and not bar.disable:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return total.item() / len(data)


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
    for batch in tqdm(batches, total=steps, desc="fine-tuning", leave=False, disable=None):
        images = prep.plain(data.images[batch])
        if config.mnemonics_augment:
            images = augment.apply(images, *augment.draw(len(batch), generator))
        loss = F.cross_entropy(model(images), data.labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
