"""Exemplar methods by the name that --exemplars takes: which real images they start from, and what becomes of them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages
from mnemonics.data.scenario import PhaseContext
from mnemonics.evaluation import features_of
from mnemonics.exemplars.meta_level import optimise_new_exemplars
from mnemonics.exemplars.selection import herding_selection, random_selection


@dataclass(frozen=True)
class ExemplarMethod:
    """A way of making exemplars."""

    choose: Callable[..., Tensor]  # (context, model, D_i, per class) -> indices into D_i, int64 [n], class by class
    optimise: Callable[..., tuple[Tensor, dict]] | None = None  # as `optimise_new_exemplars`; None: images stay real


def choose_random(context: PhaseContext, model: nn.Module, data: LabelledImages, per_class: int) -> Tensor:
    """Random images of each class; see `random_selection`."""
    return random_selection(data.labels, per_class, context.generator("exemplar choice"))


def choose_by_herding(context: PhaseContext, model: nn.Module, data: LabelledImages, per_class: int) -> Tensor:
    """Images whose mean feature is that of their class; see `herding_selection`."""
    features = features_of(model, data.images, context.prep, context.config.eval_batch_size)
    return herding_selection(features, data.labels, per_class)


def choose_start(context: PhaseContext, model: nn.Module, data: LabelledImages, per_class: int) -> Tensor:
    """What --mnemonics_start says: the images whose pixels are optimised."""
    return EXEMPLARS[context.config.mnemonics_start].choose(context, model, data, per_class)


def adjusts(config: ExperimentConfig) -> bool:
    """Whether old exemplars are adjusted (Eq. 10)."""
    return config.adjust_always or (EXEMPLARS[config.exemplars].optimise is not None and not config.no_adjust)


EXEMPLARS = {
    "mnemonics": ExemplarMethod(choose_start, optimise_new_exemplars),
    "herding": ExemplarMethod(choose_by_herding),
    "random": ExemplarMethod(choose_random),
}
