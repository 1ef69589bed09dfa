"""The model level: training on D_i and the exemplars (Eq. 5-6), and the fine-tuning on exemplars that ends a phase.

On several processes each sends its share of a batch through the network, and all of them compute the loss of the whole
batch from the features of all shares. So the loss is the one that a single process would have, also where it is no mean
over images (LUCIR's margin ranking), and no baseline needs to know how many processes there are.
"""

import copy
import functools
import math
import time
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.sgd import sgd

from mnemonics.baselines.base import Baseline
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, TrainingBatches, balanced_batches, batch_sizes, training_batches
from mnemonics.data.files import FileImages
from mnemonics.data.scenario import PhaseContext
from mnemonics.engine.cuda_graphs import as_graph, capturable
from mnemonics.engine.device import autocast
from mnemonics.engine.distributed import gathered, world
from mnemonics.engine.errors import NonFiniteLossError
from mnemonics.engine.progress import Loop
from mnemonics.exemplars.codec import Codec

Loss = Callable[[Tensor, Tensor], Tensor]


def train_phase(context: PhaseContext, model: nn.Module, baseline: Baseline, data: LabelledImages) -> None:
    """Train `model` in place on `data` = D_i and the exemplars, by SGD whose rate drops tenfold at --lr_drops of the
    epochs (80 and 120 of the paper's 160).

    Raises:
        NonFiniteLossError: when the loss of a step was NaN or infinite; found at the end of its epoch.
    """
    config, progress = context.config, context.progress
    batches = training_batches(data, context.prep, recoded(context, baseline, data), config.recode)
    optimizer, step = sgd_step(model, baseline, batches, config)
    sizes = batch_sizes(len(data), config.train_batch_size, config.last_batch)
    draws, per_epoch = BatchDraws(batches, sizes, context.generator("training")), len(sizes)
    losses = torch.zeros(per_epoch, device=data.labels.device)  # of this epoch: reading one each step would stall a GPU
    epochs = epochs_of(config, context.phase.index)
    loop = Loop("training", epochs * per_epoch, per_epoch, config.train_batch_size)
    model.train()
    begun, start = None, time.perf_counter()
    for number in progress.steps(loop, momenta=optimizer.momenta, losses=losses, draws=draws):
        epoch, batch = divmod(number, per_epoch)
        if batch == 0 or begun is None:
            optimizer.set_rate(learning_rate(config, context.phase.index, epoch))
        begun = number if begun is None else begun
        losses[batch] = step(*draws.of(epoch, batch))
        progress.report(losses[batch])
        if batch == per_epoch - 1:
            log_epoch(context, epoch, losses, sizes)
    images, seconds = (loop.steps - begun) / per_epoch * sum(sizes), time.perf_counter() - start
    of = f"phase {context.phase.index}: {epochs} epochs of {len(data)} images"
    progress.line(f"{of}, {images / seconds:.0f} images/s")


def recoded(context: PhaseContext, baseline: Baseline, data: LabelledImages) -> Tensor | FileImages | None:
    """The new images in `data`, the first ones, coded and decoded ([m, 3, h, w]), so that old and new classes do not
    differ in that; None where there are no exemplars, as in phase 0, or no new images are to be shown so."""
    config, new = context.config, data.labels >= context.phase.first
    if new.all() or not config.recode or baseline.is_bound():
        return None
    return Codec.of(config, data.images.shape[-1]).recoded(data[new])


class BatchDraws:
    """The random draws of the batches of epoch after epoch. Their state is that of the generator at the start of the
    epoch of the next batch: all of an epoch is drawn at its start."""

    def __init__(self, batches: TrainingBatches, sizes: list[int], generator: torch.Generator):
        self.batches, self.sizes, self.generator = batches, sizes, generator
        self.epoch, self.is_over, self.rest = -1, False, iter(())

    def of(self, epoch: int, batch: int) -> tuple[Tensor, ...]:
        """The draws of a batch: the next one after that of the last call or, at first, any one."""
        if epoch != self.epoch:
            self.epoch, self.before = epoch, self.generator.get_state()
            self.rest = self.batches.epoch(self.sizes, self.generator, first=batch)
        self.is_over = batch == len(self.sizes) - 1
        return next(self.rest)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state() if self.is_over else self.before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())


def milestones(epochs: int, shares: str) -> list[int]:
    """Epochs after which the learning rate drops: such shares ("1/2,3/4") of all, rounded up so that a drop never comes
    before its share of the epochs is done."""
    return [math.ceil(epochs * Fraction(share)) for share in shares.split(",")]


def epochs_of(config: ExperimentConfig, phase: int) -> int:
    """Epochs of the model level in a phase: --epochs or, after phase 0, --later_epochs."""
    return config.epochs if phase == 0 else config.later_epochs or config.epochs


def learning_rate(config: ExperimentConfig, phase: int, epoch: int) -> float:
    """That of an epoch of the model level in a phase."""
    drops = sum(epoch >= milestone for milestone in milestones(epochs_of(config, phase), config.lr_drops))
    return config.base_lr * 0.1**drops


class SGD:
    """SGD with momentum and weight decay: torch's function, without its class, which imports torch's compiler (measured
    with torch 2.12: 157 MB more, in runs that need no torchvision, which imports it too)."""

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

    On a CUDA device the step, the forward pass of the teacher included, is a CUDA graph, unless there are several
    processes.
    """
    device = batches.data.labels.device
    optimizer = SGD(baseline.parameters(model), config.base_lr, config.custom_momentum, config.custom_weight_decay)
    loss_of = loss_function(model, baseline)

    def step(*batch: Tensor) -> Tensor:
        with autocast(config.amp, device):
            loss = loss_of(*batches.network_input(*batch))
        model.zero_grad(set_to_none=True)  # also what is not optimised but has a gradient
        loss.backward()
        optimizer.step()
        return loss.detach()

    def changed() -> list[Tensor]:
        return [*optimizer.parameters, *model.buffers(), *optimizer.momenta]

    return optimizer, as_graph(step, changed, enabled=capturable(device))


def log_epoch(context: PhaseContext, epoch: int, losses: Tensor, sizes: list[int]) -> None:
    """Log the mean loss of an epoch and its learning rate; `losses` float [batches]: the mean of each batch, `sizes`:
    its images. Raises NonFiniteLossError."""
    config, phase = context.config, context.phase.index
    rate = learning_rate(config, phase, epoch)
    if not torch.isfinite(losses).all():
        step = int((~torch.isfinite(losses)).nonzero()[0])
        what = f"epoch {epoch}, step {step}: the training loss is {losses[step].item()} with learning rate {rate:g}"
        raise NonFiniteLossError(f"{what}; a lower --base_lr may help")
    mean = (losses * losses.new_tensor(sizes)).sum().item() / sum(sizes)
    number = sum(epochs_of(config, earlier) for earlier in range(phase)) + epoch
    context.progress.scalar("train/loss", mean, number)
    context.progress.scalar("train/learning_rate", rate, number)


def finetune_on_exemplars(context: PhaseContext, model: nn.Module, exemplars: LabelledImages) -> None:
    """Fine-tune `model` in place on the class-balanced exemplars, which takes away its bias toward the new classes.

    This is what the base level of the exemplar optimisation (Eq. 8) rehearses, so it is the same thing: cross-entropy,
    plain SGD on all weights, class-balanced batches, BatchNorm statistics fixed.
    """
    config, prep, generator = context.config, context.prep, context.generator("fine-tuning")
    optimizer = SGD((p for p in model.parameters() if p.requires_grad), config.finetune_lr)
    per_epoch = math.ceil(len(exemplars) / config.mnemonics_batch_size)
    steps = config.finetune_epochs * per_epoch
    augment = prep.crop_and_mirror() if config.finetune_augment else None
    batches = balanced_batches(exemplars.labels, config.mnemonics_batch_size, steps, generator)
    draws = [(batch, augment.draw(len(batch), generator) if augment else ()) for batch in batches]
    choose = exemplars.chooser()
    model.eval()
    loop = Loop("fine-tuning", steps, per_epoch, config.mnemonics_batch_size, curve="finetune/loss")
    for step in context.progress.steps(loop):
        batch, crops = draws[step]
        images = prep.plain(choose(batch).images)
        images = augment.apply(images, *crops) if augment else images
        loss = F.cross_entropy(model(images), exemplars.labels[batch])
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        context.progress.report(loss)


# several processes


def loss_function(model: nn.Module, baseline: Baseline) -> Loss:
    """(network input of this process's share [m, 3, h, w], labels of the whole batch int64 [n]) -> loss of the batch.

    On several processes, backward leaves the gradient of that loss in the parameters of every process.
    """
    if world() == 1:
        return functools.partial(baseline.loss, model)
    device = next(model.parameters()).device
    # all processes see the same batches, so no buffer has to be sent: not the statistics of BatchNorm either
    return DistributedDataParallel(
        LossOfBatch(model, baseline),
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
    )


class LossOfBatch(nn.Module):
    """What DistributedDataParallel wraps: it averages the gradients that `gathered` scales for it."""

    def __init__(self, model: nn.Module, baseline: Baseline):
        super().__init__()
        self.model, self.baseline = model, baseline

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        total, baseline = len(labels), copy.copy(self.baseline)
        if baseline.teacher is not None:
            baseline.teacher = OfWholeBatch(baseline.teacher, total)
        return baseline.loss(OfWholeBatch(self.model, total), images, labels)


class OfWholeBatch:
    """A network that takes this process's share of a batch and returns features, or logits, of all `total` images."""

    def __init__(self, model: nn.Module, total: int):
        self.model, self.total = model, total
        self.classifier = model.classifier

    def features(self, images: Tensor) -> Tensor:
        return gathered(self.model.features(images), self.total)

    def __call__(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))
