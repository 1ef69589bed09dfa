"""Exemplars as parameters: Eq. 9 (new classes) and Eq. 10 (old classes) of the paper, on top of `unroll`.

Notation: E exemplars being optimised, V validation images, θ_0 the model of this phase, K base-level steps.

    base level   θ_{k+1} = θ_k - α ∇ CE(θ_k; E[batch k])           Eq. 8: all weights, BatchNorm statistics fixed
    meta level   E <- clamp(E - β step(∇_E CE(θ_K(E); V[batch])))  Eq. 9: back through all K steps

Pixels live in the network's input space (normalised images), are clamped to what a uint8 image can show after each
update, and are rounded to uint8 at the end. `optimise_exemplars` is the part that knows nothing of this project.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnemonics.data.augment import CropAndMirror, denormalise
from mnemonics.data.batches import LabelledImages, Preprocessing, balanced_batches, rank_within_class
from mnemonics.engine.distributed import own_rows
from mnemonics.engine.progress import Progress
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings, NetworkInput
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.exemplars.pixels import Pixels


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
    progress: Progress | None = None,
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
        progress: what takes up the optimisation where it was interrupted; `validation` must draw from `generator` then.
    Returns:
        The optimised images, float [n, ...].
    Raises:
        NonFiniteLossError: if the validation loss or its gradient becomes NaN or infinite; names epoch and rates.
    """
    settings, progress = settings or BilevelSettings(), progress or Progress()
    generator = generator or torch.Generator(images.device).manual_seed(0)
    base = BaseLevel(model, settings, None if fixed is None else NetworkInput(*fixed), augment)
    start = images.detach().clone()
    pixels = Pixels(start, low, high, settings.optimizer, settings.pixel_rate, settings.epochs)
    exemplars = NetworkInput(pixels.images, labels)
    epochs = progress.steps(
        "new exemplars", settings.epochs, curve="exemplars/loss_new", pixels=pixels, generator=generator
    )
    for epoch in epochs:
        base.disturb(generator)
        draws = base.draw(labels, generator)
        used, gradient, progress.loss = base.gradient(exemplars, NetworkInput(*validation()), draws, epoch)
        pixels.step(used, gradient)
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
    progress: Progress | None = None,
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
        progress: what takes up the optimisation where it was interrupted.
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
        batch = next(balanced_batches(pool.labels, settings.val_batch_size, 1, generator))
        chosen = pool[batch[own_rows()]].loaded()
        return prep.plain(chosen.images), chosen.labels

    base = BaseLevel(model, settings, None if fixed is None else NetworkInput(*fixed), augment)
    probe, probe_draws = NetworkInput(*validation()), base.draw(start.labels, generator)
    images, (low, high) = prep.plain(start.images), prep.valid_range()
    common = {"low": low, "high": high, "fixed": fixed, "augment": augment, "generator": generator}
    common["progress"] = progress
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
    progress: Progress | None = None,
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
    parts = {"pixels": pixels, "generator": generator}
    progress = progress or Progress()
    for epoch in progress.steps("old exemplars", settings.epochs, curve="exemplars/loss_old", **parts):
        subsets = balanced_subsets(exemplars.labels, settings.subsets, generator)
        for number, subset in enumerate(subsets):
            others = torch.cat(subsets[:number] + subsets[number + 1 :])
            base.disturb(generator)
            batch = next(balanced_batches(exemplars.labels[others], settings.val_batch_size, 1, generator))
            draws = base.draw(exemplars.labels[subset], generator)
            validation = exemplars[others[batch[own_rows()]]]
            used, gradient, progress.loss = base.gradient(exemplars[subset], validation, draws, epoch)
            pixels.step(subset[used], gradient)
        pixels.end_epoch()
    return memory.with_images(denormalise(pixels.images, prep.mean, prep.std))


def balanced_subsets(labels: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Split the indices of `labels` (int64 [n]) at random into `count` subsets that share each class equally, give or
    take one."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    part = rank_within_class(labels[shuffled]) % count
    return [shuffled[part == number] for number in range(count)]
