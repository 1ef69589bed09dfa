"""Exemplars as parameters: Eq. 9 (new classes) and Eq. 10 (old classes) of the paper, on top of `unroll`.

Notation: E exemplars being optimised, V validation images, θ_0 the model of this phase, K base-level steps.

    base level   θ_{k+1} = θ_k - α ∇ CE(θ_k; E[batch k])           Eq. 8: all weights, BatchNorm statistics fixed
    meta level   E <- clamp(E - β step(∇_E CE(θ_K(E); V[batch])))  Eq. 9: back through all K steps

Pixels live in the network's input space (normalised images), are clamped to what a uint8 image can show after each
update, and are rounded to uint8 at the end.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from mnemonics.config import ExperimentConfig
from mnemonics.data.augment import denormalise
from mnemonics.data.batches import LabelledImages, Preprocessing, balanced_batches, rank_within_class
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.exemplars.unroll import Parameters, unroll, unrolled_gradient
from mnemonics.runtime import NonFiniteLossError


@dataclass(frozen=True)
class BilevelSettings:
    """Settings of the exemplar level; `of` takes them from the command line's."""

    steps: int  # K
    rate: float  # α
    batch_size: int  # exemplars per base-level step and images per validation batch
    epochs: int  # updates of the pixels
    pixel_rate: float  # β, halved every fifth of the epochs
    optimizer: str  # "adam" or "sgd"

    @staticmethod
    def of(config: ExperimentConfig) -> "BilevelSettings":
        return BilevelSettings(
            config.mnemonics_steps,
            config.mnemonics_lr,
            config.train_batch_size,
            config.mnemonics_epochs,
            config.mnemonics_outer_lr,
            config.mnemonics_optimizer,
        )


@dataclass(frozen=True)
class NetworkInput:
    """Normalised images float [n, 3, h, w] and their labels int64 [n]."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> "NetworkInput":
        return NetworkInput(self.images[index], self.labels[index])


def optimise_new_exemplars(
    model: nn.Module,
    start: LabelledImages,
    data: LabelledImages,
    prep: Preprocessing,
    settings: BilevelSettings,
    generator: torch.Generator,
) -> tuple[LabelledImages, dict[str, float]]:
    """Eq. 9: optimise the exemplars of the new classes, validated on all images of those classes.

    Args:
        model: θ_0; left unchanged. Maps float [n, 3, h, w] to logits over all labels in use.
        start: images to start from, uint8 [n, 3, h, w].
        data: D_i, uint8.
        generator: drives the minibatches; on the device of the images.
    Returns:
        The optimised exemplars (uint8) and the validation loss after K steps on the same draws, with the exemplars as
        they were ("start"), "optimised", and optimised and "rounded" to uint8.
    Raises:
        NonFiniteLossError: naming epoch and rates.
    """
    model = copy.deepcopy(model).eval()
    pixels = Pixels(prep.plain(start.images), prep, settings)

    def draw() -> tuple[Tensor, NetworkInput]:
        batch = next(balanced_batches(data.labels, settings.batch_size, 1, generator))
        validation = NetworkInput(prep.plain(data.images[batch]), data.labels[batch])
        return base_level_batches(start.labels, settings, generator), validation

    probe, probe_validation = draw()

    def probe_loss(images: Tensor) -> float:
        return loss_after_steps(model, NetworkInput(images, start.labels), probe, probe_validation, settings)

    losses = {"start": probe_loss(pixels.images)}
    for epoch in tqdm(range(settings.epochs), desc="new exemplars", leave=False, disable=None):
        batches, validation = draw()
        exemplars = NetworkInput(pixels.images, start.labels)
        used, gradient = exemplar_gradient(model, exemplars, batches, validation, settings, epoch)
        pixels.step(used, gradient)
        pixels.end_epoch()
    rounded = pixels.as_uint8()
    losses |= {"optimised": probe_loss(pixels.images), "rounded": probe_loss(prep.plain(rounded))}
    return LabelledImages(rounded, start.labels), losses


def adjust_old_exemplars(
    model: nn.Module, memory: ExemplarMemory, prep: Preprocessing, settings: BilevelSettings, generator: torch.Generator
) -> ExemplarMemory:
    """Eq. 10: optimise a class-balanced half A of the old exemplars validated on the other half B, then B on the new A.

    The halves are drawn anew each epoch. A memory with fewer than two exemplars of some class is returned as it is.
    Arguments and errors as for `optimise_new_exemplars`.
    """
    if len(memory) == 0 or int(memory.counts().min()) < 2:
        return memory
    model = copy.deepcopy(model).eval()
    pixels = Pixels(prep.plain(memory.data.images), prep, settings)
    exemplars = NetworkInput(pixels.images, memory.data.labels)
    for epoch in tqdm(range(settings.epochs), desc="old exemplars", leave=False, disable=None):
        a, b = balanced_halves(exemplars.labels, generator)
        for optimised, held in ((a, b), (b, a)):
            batches = base_level_batches(exemplars.labels[optimised], settings, generator)
            batch = held[next(balanced_batches(exemplars.labels[held], settings.batch_size, 1, generator))]
            used, gradient = exemplar_gradient(model, exemplars[optimised], batches, exemplars[batch], settings, epoch)
            pixels.step(optimised[used], gradient)
        pixels.end_epoch()
    return memory.with_images(pixels.as_uint8())


def base_level_batches(labels: Tensor, settings: BilevelSettings, generator: torch.Generator) -> Tensor:
    """Class-balanced minibatches for K base-level steps: indices into `labels`, int64 [K, batch]."""
    return torch.stack(list(balanced_batches(labels, settings.batch_size, settings.steps, generator)))


def balanced_halves(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split indices 0 .. n-1 at random so that each class is halved (an odd one out goes to the second half)."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    rank = rank_within_class(labels[shuffled])
    first = rank < torch.bincount(labels)[labels[shuffled]] // 2
    return shuffled[first], shuffled[~first]


def exemplar_gradient(
    model: nn.Module,
    exemplars: NetworkInput,
    batches: Tensor,
    validation: NetworkInput,
    settings: BilevelSettings,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of the validation loss after K base-level steps for the exemplars used by them.

    Args:
        batches: int64 [K, batch], indices into `exemplars`.
    Returns:
        Indices int64 [m] of the exemplars used, ascending, and their gradients float [m, 3, h, w].
    Raises:
        NonFiniteLossError: if the loss or the gradient is NaN or infinite.
    """
    used, position = batches.unique(return_inverse=True)
    parameters, step_loss, validation_loss = losses_of(model, exemplars[used].labels, position, validation)
    result = unrolled_gradient(
        step_loss, validation_loss, parameters, exemplars.images[used], [settings.rate] * len(batches)
    )
    if not (torch.isfinite(result.loss) and torch.isfinite(result.inputs).all()):
        raise NonFiniteLossError(
            f"exemplar optimisation, epoch {epoch}: the validation loss after {len(batches)} steps is "
            f"{result.loss.item()} with --mnemonics_lr {settings.rate} and "
            f"--mnemonics_outer_lr {settings.pixel_rate}; lower rates may help"
        )
    return used, result.inputs


def loss_after_steps(
    model: nn.Module, exemplars: NetworkInput, batches: Tensor, validation: NetworkInput, settings: BilevelSettings
) -> float:
    """The validation loss alone, for the same arguments as `exemplar_gradient`."""
    parameters, step_loss, validation_loss = losses_of(model, exemplars.labels, batches, validation)
    points, _ = unroll(step_loss, parameters, exemplars.images, [settings.rate] * len(batches))
    with torch.no_grad():
        return validation_loss(points[-1]).item()


def losses_of(model: nn.Module, labels: Tensor, batches: Tensor, validation: NetworkInput):
    """θ_0, L_k and V as `unroll` wants them: cross-entropy on batch k of the exemplars and on the validation images."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def step_loss(parameters: Parameters, images: Tensor, k: int) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (images[batches[k]],)), labels[batches[k]])

    def validation_loss(parameters: Parameters) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (validation.images,)), validation.labels)

    return parameters, step_loss, validation_loss


class Pixels:
    """Exemplar pixels [n, 3, h, w] with their optimiser. Each image has its own optimiser state, so that updating some
    images leaves the others untouched, momentum included. No weight decay: it would pull pixels to the mean colour."""

    def __init__(self, images: Tensor, prep: Preprocessing, settings: BilevelSettings):
        self.images, self.prep = images, prep
        black, white = torch.zeros_like(prep.mean), torch.ones_like(prep.mean)
        self.low, self.high = (((edge - prep.mean) / prep.std)[:, None, None] for edge in (black, white))
        self.rows = images.unbind()  # views: what the optimiser does to them happens to `images`
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimizer]
        self.optimizer = optimizer(self.rows, lr=settings.pixel_rate)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, max(1, round(settings.epochs / 5)), gamma=0.5)

    def step(self, index: Tensor, gradient: Tensor) -> None:
        """Update the images `index` (int64 [m]) by `gradient` (float [m, 3, h, w]) and clamp them to valid pixels."""
        self.optimizer.zero_grad(set_to_none=True)
        for i, row_gradient in zip(index.tolist(), gradient, strict=True):
            self.rows[i].grad = row_gradient
        self.optimizer.step()
        self.images.clamp_(self.low, self.high)

    def end_epoch(self) -> None:
        """Advance the schedule of the pixel rate."""
        self.schedule.step()

    def as_uint8(self) -> Tensor:
        """The images rounded to the nearest uint8."""
        return denormalise(self.images, self.prep.mean, self.prep.std)
