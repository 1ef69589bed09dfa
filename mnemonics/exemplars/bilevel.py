"""Exemplars as parameters: Eq. 9 (new classes) and Eq. 10 (old classes) of the paper, on top of `unroll`.

Notation: E exemplars being optimised, V validation images, θ_0 the model of this phase, K base-level steps.

    base level   θ_{k+1} = θ_k - α ∇ CE(θ_k; E[batch k])           Eq. 8: all weights, BatchNorm statistics fixed
    meta level   E <- clamp(E - β step(∇_E CE(θ_K(E); V[batch])))  Eq. 9: back through all K steps

Pixels live in the network's input space (normalised images), are clamped to what a uint8 image can show after each
update, and are rounded to uint8 at the end. `optimise_exemplars` is the part that knows nothing of this project.
"""

import copy
from collections.abc import Callable
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
from mnemonics.exemplars.pixels import Pixels
from mnemonics.exemplars.unroll import Parameters, StepLoss, ValidationLoss, unroll, unrolled_gradient
from mnemonics.runtime import NonFiniteLossError

DrawAugmentation = Callable[[int, torch.Generator], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class BilevelSettings:
    """Settings of the exemplar level. The defaults are those of `--mnemonics_preset default`."""

    variant: str = "unroll"  # or "unroll-fc" (classifier weights only), "class-mean" (no base level)
    steps: int = 15  # K
    rate: float = 0.03  # α
    batch_size: int = 256  # exemplars per base-level step and images per validation batch
    epochs: int = 30  # updates of the pixels
    pixel_rate: float = 0.05  # β, in units of the network's input, halved every fifth of the epochs
    optimizer: str = "adam"  # or "sgd"
    subsets: int = 2  # parts of the old exemplars, each adjusted on the others

    @staticmethod
    def of(config: ExperimentConfig) -> "BilevelSettings":
        """The settings of a command line."""
        return BilevelSettings(
            config.mnemonics_variant,
            config.mnemonics_steps,
            config.mnemonics_lr,
            config.mnemonics_batch_size,
            config.mnemonics_epochs,
            config.mnemonics_outer_lr,
            config.mnemonics_optimizer,
            config.mnemonics_subsets,
        )


@dataclass(frozen=True)
class NetworkInput:
    """Network input float [n, ...] (here normalised images [n, 3, h, w]) and labels int64 [n]."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> "NetworkInput":
        return NetworkInput(self.images[index], self.labels[index])

    def and_also(self, other: "NetworkInput | None") -> "NetworkInput":
        if other is None:
            return self
        return NetworkInput(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True)
class Draws:
    """The random choices of one pixel update: the K minibatches, int64 [K, batch], and an augmentation for each."""

    batches: Tensor
    augmentations: list[Callable[[Tensor], Tensor]]

    @staticmethod
    def make(
        labels: Tensor, settings: BilevelSettings, generator: torch.Generator, augment: DrawAugmentation | None
    ) -> "Draws":
        """Class-balanced minibatches of images with these labels (int64 [n])."""
        batches = torch.stack(list(balanced_batches(labels, settings.batch_size, settings.steps, generator)))
        identity: DrawAugmentation = lambda n, generator: lambda images: images  # noqa: E731
        return Draws(batches, [(augment or identity)(batches.shape[1], generator) for _ in batches])


def optimise_exemplars(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    validation: Callable[[], tuple[Tensor, Tensor]],
    settings: BilevelSettings | None = None,
    *,
    low: Tensor | float | None = None,
    high: Tensor | float | None = None,
    fixed: tuple[Tensor, Tensor] | None = None,
    augment: DrawAugmentation | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Optimise `images` so that `model`, trained on them for K steps, does well on validation data (Eq. 9).

    Args:
        model: any classifier; left unchanged, used in eval mode. The variant "unroll-fc" needs a child `classifier`,
            "class-mean" a method `features` that maps images to [n, d].
        images: where to start, float [n, ...]: what the model takes.
        labels: int64 [n].
        validation: gives the next validation batch, (float [m, ...], int64 [m]).
        settings: see `BilevelSettings`.
        low, high: valid range of the images: two numbers, or two tensors that broadcast to them; none by default.
        fixed: further (images, labels) that the base level trains on but that stay as they are.
        augment: (batch size, generator) -> differentiable augmentation with its draws fixed; none by default.
        generator: drives the minibatches; must be on the device of `images`. Seed 0 by default.
    Returns:
        The optimised images, float [n, ...].
    Raises:
        NonFiniteLossError: if the validation loss or its gradient becomes NaN or infinite; names epoch and rates.
    """
    settings = settings or BilevelSettings()
    generator = generator or torch.Generator(images.device).manual_seed(0)
    model, held_fixed = copy.deepcopy(model).eval(), None if fixed is None else NetworkInput(*fixed)
    pixels = Pixels(images.detach().clone(), low, high, settings.optimizer, settings.pixel_rate, settings.epochs)
    exemplars = NetworkInput(pixels.images, labels)
    base_labels = exemplars.and_also(held_fixed).labels
    for epoch in tqdm(range(settings.epochs), desc="new exemplars", leave=False, disable=None):
        draws = Draws.make(base_labels, settings, generator, augment)
        gradient = exemplar_gradient(model, exemplars, held_fixed, NetworkInput(*validation()), draws, settings, epoch)
        pixels.step(*gradient)
        pixels.end_epoch()
    return pixels.images


def optimise_new_exemplars(
    model: nn.Module,
    start: LabelledImages,
    data: LabelledImages,
    prep: Preprocessing,
    settings: BilevelSettings,
    generator: torch.Generator,
    old: LabelledImages | None = None,
    augmented: bool = False,
) -> tuple[LabelledImages, dict[str, float]]:
    """Eq. 9: optimise the exemplars of the new classes, validated on all images of those classes.

    Args:
        model: θ_0; left unchanged. Maps float [n, 3, h, w] to logits over all labels in use.
        start: images to start from, uint8 [n, 3, h, w].
        data: D_i, uint8.
        generator: drives the minibatches; on the device of the images.
        old: exemplars of old classes. If given, the base level trains on them too, as the fine-tuning does, and the
            validation batches hold all classes in equal parts; they stay as they are.
        augmented: whether base-level batches are cropped and mirrored at random.
    Returns:
        The optimised exemplars (uint8) and the validation loss after K steps on the same draws, with the exemplars as
        they were ("start"), "optimised", and optimised and "rounded" to uint8.
    Raises:
        NonFiniteLossError: naming epoch and rates.
    """
    fixed = None if old is None or len(old) == 0 else NetworkInput(prep.plain(old.images), old.labels)
    pool = data if fixed is None else data.and_also(old)
    augment = prep.draw_augmentation if augmented else None

    def validation() -> tuple[Tensor, Tensor]:
        batch = next(balanced_batches(pool.labels, settings.batch_size, 1, generator))
        return prep.plain(pool.images[batch]), pool.labels[batch]

    images, (low, high) = prep.plain(start.images), prep.valid_range()
    probe = NetworkInput(*validation())
    probe_draws = Draws.make(NetworkInput(images, start.labels).and_also(fixed).labels, settings, generator, augment)
    still = copy.deepcopy(model).eval()

    def probe_loss(images: Tensor) -> float:
        return loss_after_steps(still, NetworkInput(images, start.labels), fixed, probe, probe_draws, settings)

    optimised = optimise_exemplars(
        model,
        images,
        start.labels,
        validation,
        settings,
        low=low,
        high=high,
        fixed=None if fixed is None else (fixed.images, fixed.labels),
        augment=augment,
        generator=generator,
    )
    rounded = denormalise(optimised, prep.mean, prep.std)
    versions = {"start": images, "optimised": optimised, "rounded": prep.plain(rounded)}
    losses = {name: probe_loss(version) for name, version in versions.items()}
    return LabelledImages(rounded, start.labels), losses


def adjust_old_exemplars(
    model: nn.Module,
    memory: ExemplarMemory,
    prep: Preprocessing,
    settings: BilevelSettings,
    generator: torch.Generator,
    augmented: bool = False,
) -> ExemplarMemory:
    """Eq. 10: optimise a class-balanced half A of the old exemplars validated on the other half B, then B on the new A.

    With more than two subsets each is validated on all the others. They are drawn anew each epoch. A memory with fewer
    exemplars of some class than there are subsets is returned as it is. Otherwise as `optimise_new_exemplars`.
    """
    if len(memory) == 0 or int(memory.counts().min()) < settings.subsets:
        return memory
    model, augment = copy.deepcopy(model).eval(), prep.draw_augmentation if augmented else None
    images, (low, high) = prep.plain(memory.data.images), prep.valid_range()
    pixels = Pixels(images, low, high, settings.optimizer, settings.pixel_rate, settings.epochs)
    exemplars = NetworkInput(pixels.images, memory.data.labels)
    for epoch in tqdm(range(settings.epochs), desc="old exemplars", leave=False, disable=None):
        subsets = balanced_subsets(exemplars.labels, settings.subsets, generator)
        for number, subset in enumerate(subsets):
            others = torch.cat(subsets[:number] + subsets[number + 1 :])
            batch = next(balanced_batches(exemplars.labels[others], settings.batch_size, 1, generator))
            draws = Draws.make(exemplars.labels[subset], settings, generator, augment)
            used, gradient = exemplar_gradient(
                model, exemplars[subset], None, exemplars[others[batch]], draws, settings, epoch
            )
            pixels.step(subset[used], gradient)
        pixels.end_epoch()
    return memory.with_images(denormalise(pixels.images, prep.mean, prep.std))


def balanced_subsets(labels: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Split the indices of `labels` (int64 [n]) at random into `count` subsets that share each class equally, give or
    take one."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    part = rank_within_class(labels[shuffled]) % count
    return [shuffled[part == number] for number in range(count)]


def exemplar_gradient(
    model: nn.Module,
    exemplars: NetworkInput,
    fixed: NetworkInput | None,
    validation: NetworkInput,
    draws: Draws,
    settings: BilevelSettings,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of the validation loss after K base-level steps for the exemplars that took part in them.

    Returns:
        Indices int64 [m] of those exemplars, ascending, and their gradients float [m, ...].
    Raises:
        NonFiniteLossError: if the loss or the gradient is NaN or infinite.
    """
    if settings.variant == "class-mean":
        loss, gradient = class_mean_gradient(model, exemplars, fixed, validation)
        used = torch.arange(len(exemplars.labels), device=gradient.device)
    else:
        part = "classifier." if settings.variant == "unroll-fc" else ""
        parameters, step_loss, validation_loss = losses_of(model, exemplars, fixed, validation, draws, part)
        rates = [settings.rate] * len(draws.batches)
        loss, gradient, *_ = unrolled_gradient(step_loss, validation_loss, parameters, exemplars.images, rates)
        used = draws.batches.unique()
        used = used[used < len(exemplars.labels)]  # the rest are `fixed`
    if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
        raise NonFiniteLossError(
            f"exemplar optimisation, epoch {epoch}: the validation loss after {settings.steps} steps is {loss.item()} "
            f"with --mnemonics_lr {settings.rate} and --mnemonics_outer_lr {settings.pixel_rate}; lower rates may help"
        )
    return used, gradient[used]


def loss_after_steps(
    model: nn.Module,
    exemplars: NetworkInput,
    fixed: NetworkInput | None,
    validation: NetworkInput,
    draws: Draws,
    settings: BilevelSettings,
) -> float:
    """The validation loss alone, after K steps on all weights whatever the variant: what the fine-tuning will do."""
    parameters, step_loss, validation_loss = losses_of(model, exemplars, fixed, validation, draws)
    points, _ = unroll(step_loss, parameters, exemplars.images, [settings.rate] * len(draws.batches))
    with torch.no_grad():
        return validation_loss(points[-1]).item()


def losses_of(
    model: nn.Module,
    exemplars: NetworkInput,
    fixed: NetworkInput | None,
    validation: NetworkInput,
    draws: Draws,
    part: str = "",
) -> tuple[Parameters, StepLoss, ValidationLoss]:
    """θ_0, L_k and V as `unroll` wants them: cross-entropy on batch k of the exemplars and on the validation images.

    θ are the weights that are not frozen and whose names start with `part`.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad and name.startswith(part)}
    labels = exemplars.and_also(fixed).labels

    def step_loss(parameters: Parameters, images: Tensor, k: int) -> Tensor:
        batch = draws.batches[k]
        images = NetworkInput(images, exemplars.labels).and_also(fixed).images[batch]
        return F.cross_entropy(functional_call(model, parameters, (draws.augmentations[k](images),)), labels[batch])

    def validation_loss(parameters: Parameters) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (validation.images,)), validation.labels)

    return parameters, step_loss, validation_loss


def class_mean_gradient(
    model: nn.Module, exemplars: NetworkInput, fixed: NetworkInput | None, validation: NetworkInput
) -> tuple[Tensor, Tensor]:
    """The variant without a base level: (loss, its gradient for the exemplars), the loss being the cross-entropy of the
    cosines between the features of the validation images and the mean feature of each class's exemplars."""
    images = exemplars.images.detach().requires_grad_()
    everything = NetworkInput(images, exemplars.labels).and_also(fixed)
    classes, position = everything.labels.unique(return_inverse=True)
    members = F.one_hot(position, len(classes)).to(images)  # (n, classes)
    means = members.T @ model.features(everything.images) / members.sum(0)[:, None]
    with torch.no_grad():
        features = model.features(validation.images)
    cosines = F.normalize(features, dim=1) @ F.normalize(means, dim=1).T
    loss = F.cross_entropy(cosines, torch.searchsorted(classes, validation.labels))
    return loss.detach(), torch.autograd.grad(loss, images)[0]
