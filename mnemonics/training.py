"""The model level: training on D_i and the exemplars (Eq. 6), fine-tuning on the exemplars at the end of a phase."""

import math
import time
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from mnemonics.baselines.base import Baseline
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing, TrainingBatches, balanced_batches, training_batches
from mnemonics.engine.cuda_graphs import replayable
from mnemonics.engine.device import autocast
from mnemonics.engine.distributed import world
from mnemonics.engine.errors import NonFiniteLossError
from mnemonics.engine.log import RunLog
from mnemonics.engine.progress import Progress
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.protocol import Phase
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
    progress: Progress,
) -> None:
    """Train `model` in place on `data` = D_i and the exemplars, by SGD whose rate drops tenfold at --lr_drops of the
    epochs (80 and 120 of the paper's 160).

    Raises:
        NonFiniteLossError: when the loss of a step was NaN or infinite; found at the end of its epoch.
    """
    batches = training_batches(data, prep)
    optimizer, step = sgd_step(model, baseline, batches, config)
    draws = Draws(batches, config.train_batch_size, generator)
    per_epoch = math.ceil(len(data) / config.train_batch_size)
    losses = torch.zeros(per_epoch, device=data.labels.device)  # of this epoch: reading one each step would stall a GPU
    parts = {"momenta": optimizer.momenta, "losses": losses, "draws": draws}
    model.train()
    total, begun, start = config.epochs * per_epoch, None, time.perf_counter()
    for number in progress.steps("training", total, per_epoch, config.train_batch_size, **parts):
        begun = number if begun is None else begun
        epoch, batch = divmod(number, per_epoch)
        if batch == 0 or number == begun:
            optimizer.set_rate(learning_rate(config, epoch))
        losses[batch] = step(*draws.of(epoch, batch))
        progress.loss = losses[batch]
        if batch == per_epoch - 1:
            report_epoch(log, phase, epoch, losses, len(data), config)
    images = (total - begun) / per_epoch * len(data)
    log.line(
        f"phase {phase.index}: {config.epochs} epochs of {len(data)} images, "
        f"{images / (time.perf_counter() - start):.0f} images/s"
    )


class Draws:
    """The batches of epoch after epoch. Their state is that of the generator at the start of the epoch of the next
    batch: all of an epoch is drawn at its start."""

    def __init__(self, batches: TrainingBatches, batch_size: int, generator: torch.Generator):
        self.batches, self.batch_size, self.generator = batches, batch_size, generator
        self.last = math.ceil(len(batches.data) / batch_size) - 1  # number of the last batch of an epoch
        self.epoch, self.is_over, self.rest = -1, False, iter(())

    def of(self, epoch: int, batch: int) -> tuple[Tensor, ...]:
        """The draws of a batch: the next one after that of the last call or, at first, any one."""
        if epoch != self.epoch:
            self.epoch, self.before = epoch, self.generator.get_state()
            self.rest = self.batches.epoch(self.batch_size, self.generator, first=batch)
        self.is_over = batch == self.last
        return next(self.rest)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state() if self.is_over else self.before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())


def milestones(epochs: int, shares: str) -> list[int]:
    """Epochs after which the learning rate drops: such shares ("1/2,3/4") of all, rounded up so that a drop never comes
    before its share of the epochs is done."""
    return [math.ceil(epochs * Fraction(share)) for share in shares.split(",")]


class SGD:
    """SGD with momentum and weight decay: torch's, without its class, which imports torch's compiler (145 MB)."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, momentum: float = 0.0, decay: float = 0.0):
        """On a CUDA device the learning rate is a tensor, so that `set_rate` reaches into a CUDA graph."""
        self.parameters, self.momentum, self.decay = list(parameters), momentum, decay
        device = self.parameters[0].device
        self.rate = torch.tensor(rate, device=device) if device.type == "cuda" else rate
        self.momenta = [torch.zeros_like(p) for p in self.parameters if momentum]

    def set_rate(self, rate: float) -> None:
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            self.rate = rate

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients, which all of them must have."""
        gradients, fused = [p.grad for p in self.parameters], isinstance(self.rate, Tensor)
        settings = {"lr": self.rate, "momentum": self.momentum, "weight_decay": self.decay}
        plain = {"dampening": 0.0, "nesterov": False, "maximize": False}
        momenta = self.momenta or [None] * len(gradients)
        sgd(self.parameters, gradients, momenta, foreach=False, fused=fused, **settings, **plain)


def sgd_step(
    model: nn.Module, baseline: Baseline, batches: TrainingBatches, config: ExperimentConfig
) -> tuple[SGD, Callable[..., Tensor]]:
    """The optimiser, and one step: what `batches.epoch` gives for a batch -> loss, detached.

    On a CUDA device the step, the forward pass of the teacher included, is replayed as a CUDA graph, unless there are
    several processes.
    """
    device, cuda = batches.data.labels.device, batches.data.labels.is_cuda
    momentum, decay = config.custom_momentum, config.custom_weight_decay
    optimizer = SGD(baseline.parameters(model), config.base_lr, momentum, decay)
    loss_of = loss_function(model, baseline)

    def step(*batch: Tensor) -> Tensor:
        with autocast(config, device):
            loss = loss_of(*batches.network_input(*batch))
        model.zero_grad(set_to_none=True)  # also what is not optimised but has a gradient
        loss.backward()
        optimizer.step()
        return loss.detach()

    def changed() -> list[Tensor]:
        return [*optimizer.parameters, *model.buffers(), *optimizer.momenta]

    return optimizer, replayable(step, changed, enabled=cuda and world() == 1)


def learning_rate(config: ExperimentConfig, epoch: int) -> float:
    """That of an epoch of the model level."""
    drops = sum(epoch >= milestone for milestone in milestones(config.epochs, config.lr_drops))
    return config.base_lr * 0.1**drops


def report_epoch(log: RunLog, phase: Phase, epoch: int, losses: Tensor, images: int, config: ExperimentConfig) -> None:
    """Log the mean loss of an epoch and its learning rate; `losses` float [batches]: the mean of each batch."""
    rate = learning_rate(config, epoch)
    if not torch.isfinite(losses).all():
        step = int((~torch.isfinite(losses)).nonzero()[0])
        raise NonFiniteLossError(
            f"epoch {epoch}, step {step}: the training loss is {losses[step].item()} with learning rate {rate:g}; a "
            "lower --base_lr may help"
        )
    sizes = torch.full_like(losses, config.train_batch_size)
    sizes[-1] = images - config.train_batch_size * (len(losses) - 1)
    mean = (losses * sizes).sum().item() / images
    log.scalar("train/loss", mean, phase.index * config.epochs + epoch)
    log.scalar("train/learning_rate", rate, phase.index * config.epochs + epoch)


def finetune_on_exemplars(
    model: nn.Module,
    memory: ExemplarMemory,
    prep: Preprocessing,
    config: ExperimentConfig,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Fine-tune `model` in place on the class-balanced exemplars, which takes away its bias toward the new classes.

    This is what the base level of the exemplar optimisation (Eq. 8) rehearses, so it is the same thing: cross-entropy,
    plain SGD on all weights, class-balanced batches, BatchNorm statistics fixed.
    """
    data = memory.data
    optimizer = SGD((p for p in model.parameters() if p.requires_grad), config.finetune_lr)
    model.eval()
    steps = config.finetune_epochs * math.ceil(len(data) / config.mnemonics_batch_size)
    batches = balanced_batches(data.labels, config.mnemonics_batch_size, steps, generator)
    augment = prep.crop_and_mirror() if config.finetune_augment else None
    draws = [(batch, augment.draw(len(batch), generator) if augment else ()) for batch in batches]
    per_epoch, size = steps // config.finetune_epochs, config.mnemonics_batch_size
    for step in progress.steps("fine-tuning", steps, per_epoch, size, curve="finetune/loss"):
        batch, crops = draws[step]
        images = prep.plain(data.images[batch])
        images = augment.apply(images, *crops) if augment else images
        loss = F.cross_entropy(model(images), data.labels[batch])
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress.loss = loss.detach()
