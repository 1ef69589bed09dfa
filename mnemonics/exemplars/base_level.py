"""The base level of the exemplar optimisation (Eq. 8): K steps of a copy of the model on the exemplars, and the way
back through them, from a validation loss to the exemplars. Notation: `meta_level.py`.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call

from mnemonics.config.fields import SETTINGS, ExperimentConfig
from mnemonics.data.augment import CropAndMirror
from mnemonics.data.batches import LabelledImages, balanced_batches
from mnemonics.engine.cuda_graphs import capturable
from mnemonics.engine.device import free_memory_bytes, tf32
from mnemonics.engine.distributed import summed, world
from mnemonics.engine.errors import NonFiniteLossError
from mnemonics.exemplars.folding import with_layout
from mnemonics.exemplars.unroll import Draws, GraphedSteps, Parameters, Schedule, StepLoss, Steps, unrolled_gradient
from mnemonics.models.layers import ScaledConv2d

NO_HOOKS = "gradient checkpointing, or another hook on saved tensors: switch it off for the optimisation of exemplars"
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [n, classes], labels int64 [n]) -> scalar, the mean over the images


@dataclass(frozen=True)
class BilevelSettings:
    """Settings of the exemplar level. The defaults are those of `--mnemonics_preset default`; in brackets the paper's
    symbols. The flag of a setting has "mnemonics_" before its name."""

    variant: str = "unroll"  # or "unroll-fc" (classifier weights only), "class-mean" (no base level)
    steps: int = 15  # of the base level [K]
    lr: float = 0.01  # of the base level [α_2]
    batch_size: int = 128  # exemplars per base-level step
    val_batch_size: int = 512  # images per validation batch
    epochs: int = 20
    outer_lr: float = 0.01  # of the pixels [β], in units of the network's input, halved every fifth of the epochs
    optimizer: str = "adam"  # of the pixels; or "sgd"
    disturb: float = 0.2  # relative size of the noise that each update has on θ_0
    subsets: int = 2  # parts of the old exemplars, each adjusted on the others
    memory: int | None = None  # MiB that graphs of base-level steps may take; None: a quarter of what is free
    tf32: bool = False  # on a GPU, gradients by products in TF32
    cuda_graphs: bool = True  # on a GPU, capture the steps as CUDA graphs
    updates_per_epoch: int = 1  # of the pixels; has no flag
    loss: Loss = F.cross_entropy  # of base and meta level; has no flag. A captured one must not read values on the host

    def __post_init__(self):
        for name in ("variant", "optimizer"):
            if (value := getattr(self, name)) not in (known := SETTINGS[f"mnemonics_{name}"].choices):
                raise ValueError(f"{name} {value!r}: must be one of {', '.join(known)}")

    @staticmethod
    def of(config: ExperimentConfig) -> "BilevelSettings":
        """The settings of a command line."""
        names = [f.name for f in dataclasses.fields(BilevelSettings)]
        values = {name: getattr(config, f"mnemonics_{name}") for name in names if f"mnemonics_{name}" in vars(config)}
        return BilevelSettings(**values, cuda_graphs=config.cuda_graphs)


class BaseLevel:
    """The base level for one model: how training on exemplars changes it, and the gradient back to the exemplars."""

    def __init__(
        self,
        model: nn.Module,
        settings: BilevelSettings,
        fixed: LabelledImages | None = None,
        augment: CropAndMirror | None = None,
    ):
        """
        Args:
            model: θ_0; copied, so that what becomes of it afterwards does not matter. Used in eval mode.
            fixed: images that the base level trains on too, but that are not optimised.
            augment: the augmentation of base-level batches.
        Raises:
            ValueError: if the steps would train nothing.
        """
        self.model, self.settings, self.fixed, self.augment = copied(model).eval(), settings, fixed, augment
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        part = "classifier." if settings.variant == "unroll-fc" else ""
        self.trained = {name: p for name, p in self.parameters.items() if name.startswith(part)}  # in `gradient`
        if not self.trained and settings.variant != "class-mean":
            raise ValueError(f"no parameter of the model whose name starts with {part!r} requires a gradient")
        self.network, self.layout = with_layout(self.model, self.trained)
        weights = weights_of_layers(self.model) if settings.disturb else []
        self.undisturbed = [(weight, weight.detach().clone()) for weight in weights]
        self.steps: dict[tuple[torch.Size, ...], Steps] = {}  # by what the arguments look like

    @torch.no_grad()
    def disturb(self, generator: torch.Generator) -> None:
        """Put new noise on θ_0: normal, on the weights of convolutions and linear layers, for each of them `disturb`
        times the root of their mean square."""
        for weight, undisturbed in self.undisturbed:
            noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
            weight.copy_(undisturbed + self.settings.disturb * undisturbed.square().mean().sqrt() * noise)

    def draw(self, labels: Tensor, generator: torch.Generator) -> Draws:
        """Class-balanced minibatches and crops for K steps on exemplars with these labels (int64 [n])."""
        if self.fixed is not None:
            labels = torch.cat([labels, self.fixed.labels])
        draws = []
        for batch in balanced_batches(labels, self.settings.batch_size, self.settings.steps, generator):
            crops = self.augment.draw(len(batch), generator) if self.augment is not None else ()
            draws.append((batch, labels[batch], *crops))
        return tuple(torch.stack(draw) for draw in zip(*draws, strict=True))

    def schedule(self, draws: Draws, images: Tensor) -> Schedule:
        return Schedule(draws, images.new_full((self.settings.steps,), self.settings.lr))

    def gradient(
        self, exemplars: LabelledImages, validation: LabelledImages, draws: Draws, epoch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the validation loss after the K steps for the exemplars. On several processes `validation` is the
        share of this one; all get the gradient of the mean over all shares.

        Returns:
            Which exemplars took part in the steps, bool [n], the gradient float [n, ...], and the loss.
        Raises:
            NonFiniteLossError: if the loss or the gradient is NaN or infinite.
        """
        settings = self.settings
        if settings.variant == "class-mean":
            with tf32(settings.tf32):
                loss, gradient = class_mean_gradient(self.model, settings.loss, exemplars, self.fixed, validation)
            used = torch.ones_like(exemplars.labels, dtype=torch.bool)
        else:
            steps, schedule = self.steps_for(exemplars.images, draws), self.schedule(draws, exemplars.images)
            loss_of = functools.partial(validation_loss, self.network, settings.loss, validation)
            with tf32(settings.tf32):
                loss, gradient, *_ = unrolled_gradient(steps, loss_of, self.trained, exemplars.images, schedule)
            everything = len(exemplars) + (0 if self.fixed is None else len(self.fixed))
            used = torch.zeros(everything, dtype=torch.bool, device=gradient.device)
            used = used.index_fill_(0, draws[0].flatten(), True)[: len(exemplars)]
        loss, gradient = mean_of_all(loss, gradient, len(validation.labels))
        if not (torch.isfinite(loss) & torch.isfinite(gradient).all()):  # one look at the device
            what = "the gradient of the validation loss" if torch.isfinite(loss) else "the validation loss"
            raise NonFiniteLossError(
                f"exemplar optimisation, epoch {epoch}: {what} after {settings.steps} steps is not finite with "
                f"--mnemonics_lr {settings.lr} and --mnemonics_outer_lr {settings.outer_lr}; lower rates may help"
            )
        return used, gradient, loss.detach()

    def steps_for(self, images: Tensor, draws: Draws) -> Steps:
        """The steps of `gradient` on such images and draws."""
        shapes = (images.shape, *(draw.shape for draw in draws))
        if shapes not in self.steps:
            given, graphed = self.settings.memory, self.settings.cuda_graphs and capturable(images.device)
            memory = free_memory_bytes(images.device) // 4 if given is None else given * 2**20
            self.steps[shapes] = (GraphedSteps if graphed else Steps)(self.loss_of(self.network), self.layout, memory)
        return self.steps[shapes]

    def loss_of(self, network: nn.Module) -> StepLoss:
        """L_k of a network; does not refer to this object, for graphs captured of it to be freed with it."""
        fixed = None if self.fixed is None else self.fixed.images
        return functools.partial(step_loss, network, self.settings.loss, fixed, self.augment)

    def loss_after_steps(self, exemplars: LabelledImages, validation: LabelledImages, draws: Draws) -> float:
        """V alone, after K steps on all weights whatever the variant: what the fine-tuning will do."""
        network, layout = with_layout(self.model, self.parameters)
        θ, schedule = layout.flatten(self.parameters), self.schedule(draws, exemplars.images)
        steps = Steps(self.loss_of(network), layout)
        state = steps.state(θ, exemplars.images, schedule)
        steps.run(state, schedule, (θ, None), keep=False)
        with torch.no_grad():
            loss = validation_loss(network, self.settings.loss, validation, layout.unflatten(state.points[-1]))
        return mean_of_all(loss, state.points[:0], len(validation.labels))[0].item()


def copied(model: nn.Module) -> nn.Module:
    """A copy, in which results of a forward pass that a module keeps as an attribute are detached."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


def weights_of_layers(model: nn.Module) -> list[nn.Parameter]:
    """Those of convolutions and linear layers that later phases may change: not frozen ones, but of a `ScaledConv2d`,
    which changes by its factors. Of a parametrised weight, such as a normalised one, what it is made of."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    return [
        p
        for layer in layers
        for name, p in layer.named_parameters()
        if "weight" in name and (p.requires_grad or isinstance(layer, ScaledConv2d))
    ]


def step_loss(
    network: nn.Module,
    loss: Loss,
    fixed: Tensor | None,
    augment: CropAndMirror | None,
    parameters: Parameters,
    images: Tensor,
    *draw: Tensor,
) -> Tensor:
    """L_k: the loss on a minibatch; `draw`: its indices (into the exemplars, then `fixed`), labels, and crops."""
    batch, labels, *crops = draw
    images = (images if fixed is None else torch.cat([images, fixed])).index_select(0, batch)
    if augment is not None:
        images = augment.apply(images, *crops)
    return loss(functional_call(network, parameters, (images,)), labels)


def validation_loss(network: nn.Module, loss: Loss, validation: LabelledImages, parameters: Parameters) -> Tensor:
    """V: the loss on the validation images; see `own_loss`. Raises RuntimeError for a network that would compute parts
    of its graph again in the backward pass: the weights are other ones by then."""
    with disable_saved_tensors_hooks(NO_HOOKS):
        logits = functional_call(network, parameters, (validation.images,))
    return own_loss(loss, logits, validation.labels)


def own_loss(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss on validation images: the mean or, on several processes, the sum, which an empty share has too."""
    if world() == 1:
        return loss(logits, labels)
    return len(labels) * loss(logits, labels) if len(labels) else logits.sum()


def mean_of_all(loss: Tensor, gradient: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """An `own_loss` over so many images and its gradient -> those of the mean over the images of all processes.

    The pass back through the steps is linear in the gradient that it starts from, so shares can be added at its end.
    """
    if world() == 1:
        return loss, gradient
    total = summed(torch.cat([loss.detach().reshape(1), loss.new_full((1,), images), gradient.flatten()]))
    return total[0] / total[1], total[2:].view_as(gradient) / total[1]


def class_mean_gradient(
    model: nn.Module, loss: Loss, exemplars: LabelledImages, fixed: LabelledImages | None, validation: LabelledImages
) -> tuple[Tensor, Tensor]:
    """The variant without a base level: (the loss, its gradient for the exemplars), where the logits of `own_loss` are
    the cosines between the features of the validation images and the mean feature of each class's exemplars."""
    images = exemplars.images.detach().requires_grad_()
    everything = LabelledImages(images, exemplars.labels)
    everything = everything if fixed is None else everything.followed_by(fixed)
    classes, position = everything.labels.unique(return_inverse=True)
    members = F.one_hot(position, len(classes)).to(images)  # (n, classes)
    means = members.T @ model.features(everything.images) / members.sum(0)[:, None]
    with torch.no_grad():
        features = model.features(validation.images)
    if not torch.isin(validation.labels, classes).all():
        raise ValueError("class-mean: validation images of classes that have no exemplars")
    cosines = F.normalize(features, dim=1) @ F.normalize(means, dim=1).T
    value = own_loss(loss, cosines, torch.searchsorted(classes, validation.labels))
    return value.detach(), torch.autograd.grad(value, images)[0]
