"""Exemplars as parameters: Eq. 9 (new classes) and Eq. 10 (old classes) of the paper, on top of `unroll`.

Notation: E exemplars being optimised, V validation images, θ_0 the model of this phase, K base-level steps,
L the loss: cross-entropy, or what `BilevelSettings.loss` says.

    base level   θ_{k+1} = θ_k - α ∇ L(θ_k; E[batch k])            Eq. 8: all weights, BatchNorm statistics fixed
    meta level   E <- clamp(E - β step(∇_E L(θ_K(E); V[batch])))   Eq. 9: back through all K steps

Pixels live in the network's input space (normalised images), are clamped to what a uint8 image can show after each
update, and are rounded to uint8 at the end. `optimise_exemplars` is the part that knows nothing of this project.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.augment import CropAndMirror, denormalise
from mnemonics.data.batches import LabelledImages, balanced_batches, batch_sizes
from mnemonics.data.image_source import rank_within_class
from mnemonics.data.scenario import PhaseContext
from mnemonics.engine.distributed import from_main, own_rows, same_everywhere
from mnemonics.engine.progress import Loop, Progress
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings
from mnemonics.exemplars.codec import Codec

Place = tuple[str, int, int]  # of an update: its purpose, epoch and number in the epoch


class Pixels:
    """Exemplar pixels [n, ...] with their optimiser, torch.optim's Adam or SGD. Each image has its own state and count
    of steps, so that updating some images leaves the others untouched, momentum included. No weight decay: it would
    pull pixels to the mean colour.

    Args:
        images: float [n, ...]; changed in place.
        low, high: valid range, both numbers or both tensors that broadcast to `images`; None for no limit.
        settings: whose `optimizer`, `outer_lr` (halved every fifth of the epochs) and `epochs` are used.
    """

    def __init__(
        self, images: Tensor, low: Tensor | float | None, high: Tensor | float | None, settings: BilevelSettings
    ):
        self.images, self.low, self.high, self.settings, self.epoch = images, low, high, settings, 0
        self.moments = [torch.zeros_like(images) for _ in range(2 if settings.optimizer == "adam" else 0)]
        self.steps = torch.zeros(len(images), dtype=torch.float64, device=images.device)  # of each image

    @property
    def rate(self) -> float:
        return self.settings.outer_lr * 0.5 ** (self.epoch // max(1, round(self.settings.epochs / 5)))

    @torch.no_grad()
    def step(self, gradient: Tensor, used: Tensor, index: Tensor | None = None) -> None:
        """Update those of the images `index` (int64 [m]; all by default) that are `used` (bool [m]) by `gradient`
        (float [m, ...]) and clamp to the valid range. No value is read on the host."""
        index = torch.arange(len(self.images), device=used.device) if index is None else index
        self.steps.index_add_(0, index, used.to(self.steps))
        each = (-1, *[1] * (gradient.dim() - 1))
        step, used = self.steps[index].view(each), used.view(each)
        if self.moments:  # Adam (Kingma & Ba 2015)
            old, (β1, β2) = [moment[index] for moment in self.moments], (0.9, 0.999)
            new = torch.lerp(old[0], gradient, 1 - β1), torch.lerp(old[1], gradient.square(), 1 - β2)
            for moment, before, after in zip(self.moments, old, new, strict=True):
                moment[index] = torch.where(used, after, before)
            scales = [(1 - β**step).to(gradient) for β in (β1, β2)]
            gradient = new[0] / scales[0] / ((new[1] / scales[1]).sqrt() + 1e-8)
        images = self.images[index]
        self.images[index] = torch.where(used, images - self.rate * gradient, images)
        if self.low is not None or self.high is not None:
            self.images.clamp_(self.low, self.high)

    def state_dict(self) -> dict[str, Any]:
        """The images and the state of their optimiser and schedule."""
        return {"images": self.images, "moments": self.moments, "steps": self.steps, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what gave this `state_dict`."""
        mine = (self.images, self.steps, *self.moments)
        for tensor, value in zip(mine, (state["images"], state["steps"], *state["moments"]), strict=True):
            tensor.copy_(value)
        self.epoch = state["epoch"]

    def end_epoch(self) -> None:
        """Advance the schedule of the pixel rate."""
        self.epoch += 1


@torch.enable_grad()
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
        model: any classifier of layers that can be differentiated twice; left unchanged, used in eval mode. The variant
            "unroll-fc" needs a child `classifier`, "class-mean" a method `features` that maps images to [n, d].
        images: where to start, float [n, ...]: what the model takes.
        labels: int64 [n].
        validation: gives the next validation batch, (float [m, ...], int64 [m]); on several processes, the share of
            each. Everything else must be the same there.
        settings: see `BilevelSettings`; the loss is among them.
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
    base = BaseLevel(model, settings, None if fixed is None else LabelledImages(*fixed), augment)
    pixels = Pixels(images.detach().clone(), low, high, settings)
    exemplars = LabelledImages(pixels.images, labels)
    per_epoch = settings.updates_per_epoch
    loop = Loop("new exemplars", settings.epochs * per_epoch, per_epoch, curve="exemplars/loss_new")
    for update in progress.steps(loop, pixels=pixels, generator=generator):
        base.disturb(generator)
        draws = base.draw(labels, generator)
        used, gradient, loss = base.gradient(exemplars, LabelledImages(*validation()), draws, update // per_epoch)
        pixels.step(gradient, used)
        if (update + 1) % per_epoch == 0:
            pixels.end_epoch()
        progress.report(loss)
    return pixels.images


def optimise_new_exemplars(
    context: PhaseContext, model: nn.Module, start: LabelledImages, data: LabelledImages, old: LabelledImages
) -> tuple[Tensor, dict[str, float]]:
    """Eq. 9: optimise the exemplars of the new classes, validated on all images of those classes.

    With `--mnemonics_base joint` the base level trains on the exemplars of old classes too, as the fine-tuning does,
    and the validation batches hold all classes in equal parts; old exemplars stay as they are.

    Args:
        model: θ_0; left unchanged. Maps float [n, 3, h, w] to logits over all labels in use.
        start: images to start from, uint8 [n, 3, h, w].
        data: D_i, uint8.
        old: exemplars of old classes, uint8.
    Returns:
        The optimised images, uint8 [n, 3, h, w]; with `--mnemonics_fall_back`, where they are `no_better`, the others.
        And the validation loss after K steps on the same draws, with the exemplars as they were ("start"), "optimised",
        also "rounded" to uint8; and with the images returned, coded and decoded ("stored"), unless raw ones are stored.
    Raises:
        NonFiniteLossError: naming epoch and rates.
    """
    config, prep, generator = context.config, context.prep, context.generator("new exemplars")
    joint = config.mnemonics_base == "joint" and len(old) > 0
    fixed, pool = ((prep.plain(old.images), old.labels), data.followed_by(old)) if joint else (None, data)
    per_epoch, choose = len(validation_sizes(config, len(pool))), pool.chooser()
    settings = dataclasses.replace(BilevelSettings.of(config), updates_per_epoch=per_epoch)

    def validation(place: Place | None = None) -> tuple[Tensor, Tensor]:
        place = place or ("new exemplars", *divmod(context.progress.step, per_epoch))
        chosen = choose(validation_batch(context, pool.labels, place, generator)[own_rows()])
        return prep.plain(chosen.images), chosen.labels

    augment = prep.crop_and_mirror() if config.mnemonics_augment else None
    base = BaseLevel(model, settings, None if fixed is None else LabelledImages(*fixed), augment)
    probe, probe_draws = LabelledImages(*validation(("probe", 0, 0))), base.draw(start.labels, generator)
    images, (low, high) = prep.plain(start.images), prep.valid_range()
    common = {"low": low, "high": high, "fixed": fixed, "augment": augment, "generator": generator}
    optimised = optimise_exemplars(
        model, images, start.labels, validation, settings, **common, progress=context.progress
    )
    rounded = denormalise(optimised, prep.mean, prep.std)
    versions = {"start": images, "optimised": optimised, "rounded": prep.plain(rounded)}
    loss_of = functools.partial(base.loss_after_steps, validation=probe, draws=probe_draws)
    losses = {name: loss_of(LabelledImages(version, start.labels)) for name, version in versions.items()}
    same_everywhere([rounded])
    new = start.images if config.mnemonics_fall_back and no_better(context, losses) else rounded
    if (codec := Codec.of(config, new.shape[-1])).format != "raw":
        coded = codec.recoded(LabelledImages(new, start.labels))
        losses["stored"] = loss_of(LabelledImages(prep.plain(coded), start.labels))
    return new, losses


def no_better(context: PhaseContext, losses: dict[str, float]) -> bool:
    """Whether optimising did not lower the validation loss; told. A network that knows its training images by heart
    leaves nothing to gain, and Adam's steps, which do not shrink with the gradient, then do harm."""
    before, after = losses["start"], losses["rounded"]
    worse = from_main(lambda: after >= before)  # the last bit may differ between GPUs
    if worse:
        context.progress.line(f"validation loss {before:.4g}, optimised {after:.4g}: the images to start from are kept")
    return worse


def adjust_old_exemplars(context: PhaseContext, model: nn.Module, old: LabelledImages) -> Tensor:
    """Eq. 10: optimise a class-balanced half A of the old exemplars validated on the other half B, then B on the new A.

    With more than two subsets each is validated on all the others. They are drawn anew each epoch, in which each has an
    update or, with --mnemonics_epoch_unit pass, one for each batch of the images that validate it. Old exemplars of
    which some class has fewer than there are subsets stay as they are. Otherwise as `optimise_new_exemplars`.

    Returns:
        The images of `old`, adjusted, uint8 [n, 3, h, w].
    """
    prep, settings, generator = context.prep, BilevelSettings.of(context.config), context.generator("old exemplars")
    if len(old) == 0:
        return old.images
    if (fewest := int(torch.bincount(old.labels).min())) < settings.subsets:
        why = f"a class has {fewest}, fewer than the {settings.subsets} subsets"
        context.progress.line(f"old exemplars are not adjusted: {why}")
        return old.images
    base = BaseLevel(model, settings, augment=prep.crop_and_mirror() if context.config.mnemonics_augment else None)
    pixels = Pixels(prep.plain(old.images), *prep.valid_range(), settings)
    exemplars = LabelledImages(pixels.images, old.labels)
    subsets = balanced_subsets(old.labels, settings.subsets, generator)
    passes = [range(len(validation_sizes(context.config, len(old) - len(subset)))) for subset in subsets]
    turns = [(number, batch) for number, batches in enumerate(passes) for batch in batches]  # of an epoch
    loop = Loop("adjusting old exemplars", settings.epochs * len(turns), len(turns), curve="exemplars/loss_old")
    for update in context.progress.steps(loop, pixels=pixels, generator=generator, subsets=subsets):
        epoch, turn = divmod(update, len(turns))
        number, batch = turns[turn]
        subset, others = subsets[number], torch.cat(subsets[:number] + subsets[number + 1 :])
        base.disturb(generator)
        place = f"{loop.name}, subset {number}", epoch, batch
        chosen = validation_batch(context, exemplars.labels[others], place, generator)
        draws = base.draw(exemplars.labels[subset], generator)
        validation = exemplars[others[chosen[own_rows()]]]
        used, gradient, loss = base.gradient(exemplars[subset], validation, draws, epoch)
        pixels.step(gradient, used, subset)
        if turn + 1 == len(turns):
            pixels.end_epoch()
            subsets[:] = balanced_subsets(exemplars.labels, settings.subsets, generator)
        context.progress.report(loss)
    adjusted = denormalise(pixels.images, prep.mean, prep.std)
    same_everywhere([adjusted])
    return adjusted


def validation_sizes(config: ExperimentConfig, images: int) -> list[int]:
    """Images of the validation batch of each update of an epoch, of which there is one or, with --mnemonics_epoch_unit
    pass, as many as all `images` make."""
    size = config.mnemonics_val_batch_size
    return [size] if config.mnemonics_epoch_unit == "update" else batch_sizes(images, size, config.last_batch)


def validation_batch(context: PhaseContext, labels: Tensor, place: Place, generator: torch.Generator) -> Tensor:
    """Indices int64 [m] into `labels` (int64 [n]) of the validation images of an update: class-balanced ones, drawn by
    `generator`, or its part of a pass, whose order depends on seed, phase, purpose and epoch alone: a resumed run finds
    it again."""
    sizes, (purpose, epoch, number) = validation_sizes(context.config, len(labels)), place
    if context.config.mnemonics_epoch_unit == "update":
        return next(balanced_batches(labels, *sizes, 1, generator))
    generator = context.generator(f"{purpose}, pass {epoch}")
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    return order[: sum(sizes)].split(sizes)[number]


def balanced_subsets(labels: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Split the indices of `labels` (int64 [n]) at random into `count` subsets that share each class equally, give or
    take one."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    part = rank_within_class(labels[shuffled]) % count
    sizes = torch.stack([(part == number).sum() for number in range(count)]).tolist()  # one look at the device
    return list(shuffled[torch.argsort(part, stable=True)].split(sizes))
