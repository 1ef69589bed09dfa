"""Exemplars as parameters: Eq. 9 (new classes) and Eq. 10 (old classes) of the paper, on top of `unroll`.

Notation: E exemplars being optimised, V validation images, θ_0 the model of this phase, K base-level steps.

    base level   θ_{k+1} = θ_k - α ∇ CE(θ_k; E[batch k])           Eq. 8: all weights, BatchNorm statistics fixed
    meta level   E <- clamp(E - β step(∇_E CE(θ_K(E); V[batch])))  Eq. 9: back through all K steps

Pixels live in the network's input space (normalised images), are clamped to what a uint8 image can show after each
update, and are rounded to uint8 at the end. `optimise_exemplars` is the part that knows nothing of this project.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from mnemonics.config import ExperimentConfig
from mnemonics.data.augment import CropAndMirror, denormalise
from mnemonics.data.batches import LabelledImages, Preprocessing, balanced_batches, rank_within_class
from mnemonics.distributed import no_bar, own_rows, summed, world
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.exemplars.pixels import Pixels
from mnemonics.exemplars.unroll import Draw, GraphedSteps, Parameters, Steps, unroll, unrolled_gradient
from mnemonics.runtime import NonFiniteLossError


@dataclass(frozen=True)
class BilevelSettings:
    """Settings of the exemplar level. The defaults are those of `--mnemonics_preset default`."""

    variant: str = "unroll"  # or "unroll-fc" (classifier weights only), "class-mean" (no base level)
    steps: int = 15  # K
    rate: float = 0.01  # α
    batch_size: int = 128  # exemplars per base-level step and images per validation batch
    epochs: int = 20  # updates of the pixels
    pixel_rate: float = 0.01  # β, in units of the network's input, halved every fifth of the epochs
    optimizer: str = "adam"  # or "sgd"
    subsets: int = 2  # parts of the old exemplars, each adjusted on the others
    cuda_graphs: bool = False  # capture the steps as CUDA graphs

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
            config.cuda_graphs,
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


class BaseLevel:
    """The base level for one model: how training on exemplars changes it, and the gradient back to the exemplars."""

    def __init__(
        self,
        model: nn.Module,
        settings: BilevelSettings,
        fixed: NetworkInput | None = None,
        augment: CropAndMirror | None = None,
    ):
        """
        Args:
            model: θ_0; copied, so that what becomes of it afterwards does not matter. Used in eval mode.
            fixed: images that the base level trains on too, but that are not optimised.
            augment: the augmentation of base-level batches.
        """
        self.model, self.settings, self.fixed, self.augment = copy.deepcopy(model).eval(), settings, fixed, augment
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.graphed: dict[tuple[torch.Size, ...], GraphedSteps] = {}

    def step_loss(
        self, parameters: Parameters, images: Tensor, batch: Tensor, labels: Tensor, *crops: Tensor
    ) -> Tensor:
        """L_k: cross-entropy on the minibatch with these indices (into the exemplars, then `fixed`) and labels."""
        if self.fixed is not None:
            images = torch.cat([images, self.fixed.images])
        images = images.index_select(0, batch)
        if self.augment is not None:
            images = self.augment.apply(images, *crops)
        return F.cross_entropy(functional_call(self.model, parameters, (images,)), labels)

    def draw(self, labels: Tensor, generator: torch.Generator) -> list[Draw]:
        """Class-balanced minibatches and crops for K steps on exemplars with these labels (int64 [n])."""
        if self.fixed is not None:
            labels = torch.cat([labels, self.fixed.labels])
        draws = []
        for batch in balanced_batches(labels, self.settings.batch_size, self.settings.steps, generator):
            crops = self.augment.draw(len(batch), generator) if self.augment is not None else ()
            draws.append((batch, labels[batch], *crops))
        return draws

    def gradient(
        self, exemplars: NetworkInput, validation: NetworkInput, draws: list[Draw], epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the validation loss after the K steps for the exemplars that took part in them. On several
        processes `validation` is the share of this one; all get the gradient of the mean over all shares.

        Returns:
            Indices int64 [m] of those exemplars, ascending, and their gradients float [m, ...].
        Raises:
            NonFiniteLossError: if the loss or the gradient is NaN or infinite.
        """
        settings = self.settings
        if settings.variant == "class-mean":
            loss, gradient = class_mean_gradient(self.model, exemplars, self.fixed, validation)
            used = torch.arange(len(exemplars.labels), device=gradient.device)
        else:
            part = "classifier." if settings.variant == "unroll-fc" else ""
            parameters = {name: p for name, p in self.parameters.items() if name.startswith(part)}
            steps, rates = self.steps_for(parameters, exemplars.images, draws[0]), [settings.rate] * settings.steps
            loss_of = functools.partial(self.validation_loss, validation)
            loss, gradient, *_ = unrolled_gradient(steps, loss_of, parameters, exemplars.images, draws, rates)
            used = torch.stack([batch for batch, *_ in draws]).unique()
            used = used[used < len(exemplars.labels)]  # the rest are `fixed`
        loss, gradient = mean_of_all(loss, gradient, len(validation.labels))
        if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
            raise NonFiniteLossError(
                f"exemplar optimisation, epoch {epoch}: the validation loss after {settings.steps} steps is "
                f"{loss.item()} with --mnemonics_lr {settings.rate} and --mnemonics_outer_lr {settings.pixel_rate}; "
                "lower rates may help"
            )
        return used, gradient[used]

    def steps_for(self, parameters: Parameters, images: Tensor, draw: Draw) -> Steps:
        """The steps to use: with `cuda_graphs`, captured once for each set of shapes."""
        if not (self.settings.cuda_graphs and images.is_cuda):
            return Steps(self.step_loss, parameters)
        shapes = (images.shape, *(tensor.shape for tensor in draw))
        if shapes not in self.graphed:
            self.graphed[shapes] = GraphedSteps(self.step_loss, parameters, images, draw)
        return self.graphed[shapes]

    def validation_loss(self, validation: NetworkInput, parameters: Parameters) -> Tensor:
        """V: cross-entropy on the validation images; see `own_loss`."""
        return own_loss(functional_call(self.model, parameters, (validation.images,)), validation.labels)

    def loss_after_steps(self, exemplars: NetworkInput, validation: NetworkInput, draws: list[Draw]) -> float:
        """V alone, after K steps on all weights whatever the variant: what the fine-tuning will do."""
        rates = [self.settings.rate] * self.settings.steps
        steps = Steps(self.step_loss, self.parameters)
        points, _ = unroll(steps, steps.layout.flatten(self.parameters), exemplars.images, draws, rates)
        with torch.no_grad():
            loss = self.validation_loss(validation, steps.layout.unflatten(points[-1]))
        return mean_of_all(loss, points[:0], len(validation.labels))[0].item()


def own_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on validation images: the mean or, on several processes, the sum, which an empty share has too."""
    return F.cross_entropy(logits, labels, reduction="mean" if world() == 1 else "sum")


def mean_of_all(loss: Tensor, gradient: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """An `own_loss` over so many images and its gradient -> those of the mean over the images of all processes.

    The pass back through the steps is linear in the gradient that it starts from, so shares can be added at its end.
    """
    if world() == 1:
        return loss, gradient
    total = summed(torch.cat([loss.detach().reshape(1), loss.new_tensor([images]), gradient.flatten()]))
    return total[0] / total[1], total[2:].view_as(gradient) / total[1]


def class_mean_gradient(
    model: nn.Module, exemplars: NetworkInput, fixed: NetworkInput | None, validation: NetworkInput
) -> tuple[Tensor, Tensor]:
    """The variant without a base level: (loss, its gradient for the exemplars), the loss being the cross-entropy (see
    `own_loss`) of the cosines between the features of the validation images and the mean feature of each class's
    exemplars."""
    images = exemplars.images.detach().requires_grad_()
    everything = NetworkInput(images, exemplars.labels).and_also(fixed)
    classes, position = everything.labels.unique(return_inverse=True)
    members = F.one_hot(position, len(classes)).to(images)  # (n, classes)
    means = members.T @ model.features(everything.images) / members.sum(0)[:, None]
    with torch.no_grad():
        features = model.features(validation.images)
    cosines = F.normalize(features, dim=1) @ F.normalize(means, dim=1).T
    loss = own_loss(cosines, torch.searchsorted(classes, validation.labels))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


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
    augment: CropAndMirror | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Optimise `images` so that `model`, trained on them for K steps, does well on validation data (Eq. 9).

    Args:
        model: any classifier; left unchanged, used in eval mode. The variant "unroll-fc" needs a child `classifier`,
            "class-mean" a method `features` that maps images to [n, d].
        images: where to start, float [n, ...]: what the model takes.
        labels: int64 [n].
        validation: gives the next validation batch, (float [m, ...], int64 [m]); on several processes, the share of
            each. Everything else must be the same there.
        settings: see `BilevelSettings`.
        low, high: valid range of the images: two numbers, or two tensors that broadcast to them; none by default.
        fixed: further (images, labels) that the base level trains on but that stay as they are.
        augment: how base-level batches are augmented; not at all by default.
        generator: drives the minibatches; must be on the device of `images`. Seed 0 by default.
    Returns:
        The optimised images, float [n, ...].
    Raises:
        NonFiniteLossError: if the validation loss or its gradient becomes NaN or infinite; names epoch and rates.
    """
    settings = settings or BilevelSettings()
    generator = generator or torch.Generator(images.device).manual_seed(0)
    base = BaseLevel(model, settings, None if fixed is None else NetworkInput(*fixed), augment)
    start = images.detach().clone()
    pixels = Pixels(start, low, high, settings.optimizer, settings.pixel_rate, settings.epochs)
    exemplars = NetworkInput(pixels.images, labels)
    for epoch in tqdm(range(settings.epochs), desc="new exemplars", leave=False, disable=no_bar()):
        draws = base.draw(labels, generator)
        pixels.step(*base.gradient(exemplars, NetworkInput(*validation()), draws, epoch))
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
    fixed = None if old is None or len(old) == 0 else (prep.plain(old.images), old.labels)
    pool = data if fixed is None else data.and_also(old)
    augment = prep.crop_and_mirror() if augmented else None

    def validation() -> tuple[Tensor, Tensor]:
        batch = next(balanced_batches(pool.labels, settings.batch_size, 1, generator))
        chosen = pool[batch[own_rows()]].loaded()
        return prep.plain(chosen.images), chosen.labels

    base = BaseLevel(model, settings, None if fixed is None else NetworkInput(*fixed), augment)
    probe, probe_draws = NetworkInput(*validation()), base.draw(start.labels, generator)
    images, (low, high) = prep.plain(start.images), prep.valid_range()
    common = {"low": low, "high": high, "fixed": fixed, "augment": augment, "generator": generator}
    optimised = optimise_exemplars(model, images, start.labels, validation, settings, **common)
    rounded = denormalise(optimised, prep.mean, prep.std)
    versions = {"start": images, "optimised": optimised, "rounded": prep.plain(rounded)}
    losses = {
        name: base.loss_after_steps(NetworkInput(version, start.labels), probe, probe_draws)
        for name, version in versions.items()
    }
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
    base = BaseLevel(model, settings, augment=prep.crop_and_mirror() if augmented else None)
    images, (low, high) = prep.plain(memory.data.images), prep.valid_range()
    pixels = Pixels(images, low, high, settings.optimizer, settings.pixel_rate, settings.epochs)
    exemplars = NetworkInput(pixels.images, memory.data.labels)
    for epoch in tqdm(range(settings.epochs), desc="old exemplars", leave=False, disable=no_bar()):
        subsets = balanced_subsets(exemplars.labels, settings.subsets, generator)
        for number, subset in enumerate(subsets):
            others = torch.cat(subsets[:number] + subsets[number + 1 :])
            batch = next(balanced_batches(exemplars.labels[others], settings.batch_size, 1, generator))
            draws = base.draw(exemplars.labels[subset], generator)
            validation = exemplars[others[batch[own_rows()]]]
            used, gradient = base.gradient(exemplars[subset], validation, draws, epoch)
            pixels.step(subset[used], gradient)
        pixels.end_epoch()
    return memory.with_images(denormalise(pixels.images, prep.mean, prep.std))


def balanced_subsets(labels: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Split the indices of `labels` (int64 [n]) at random into `count` subsets that share each class equally, give or
    take one."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    part = rank_within_class(labels[shuffled]) % count
    return [shuffled[part == number] for number in range(count)]
