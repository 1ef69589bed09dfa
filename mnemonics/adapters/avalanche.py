"""Exemplars in Avalanche (avalanche-lib 0.6), as the storage of its replay plugin.

from avalanche.training.plugins import ReplayPlugin
plugin = ReplayPlugin(mem_size=200, storage_policy=ExemplarBuffer(200, "mnemonics"))
"""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mnemonics.exemplars.base_level import BilevelSettings
from mnemonics.exemplars.meta_level import optimise_exemplars
from mnemonics.exemplars.selection import herding_selection, random_selection

KINDS = ("random", "herding", "mnemonics")


class ExemplarBuffer(ExemplarsBuffer):
    """Random, herding or optimised exemplars of all classes seen, equally many of each, made after each experience.

    Images are stored as the network takes them: after the transforms of evaluation, float32. All images of an
    experience are in memory while its exemplars are made.
    """

    def __init__(
        self,
        max_size: int,
        kind: str = "mnemonics",
        settings: BilevelSettings | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ):
        """
        Args:
            max_size: exemplars in total.
            kind: "random", "herding", or "mnemonics", which starts from herding.
            settings: of the optimisation.
            features: images [n, ...] -> [n, d], for herding; by default the outputs of the model.
        Raises:
            ValueError: for another kind.
        """
        super().__init__(max_size)
        if kind not in KINDS:
            raise ValueError(f"{kind}: {', '.join(KINDS)} would work")
        self.kind, self.settings, self.features = kind, settings or BilevelSettings(), features
        self.generator = torch.Generator().manual_seed(seed)
        self.exemplars: dict[int, tuple[Tensor, int]] = {}  # class -> images float [n, ...], task label

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Add exemplars of the classes of an experience that are new, and drop the last ones of others to make room."""
        parts = list(zip(*exp.dataset.eval(), strict=True))
        images, labels, tasks = (torch.stack([torch.as_tensor(value) for value in part]) for part in parts)
        known = torch.isin(labels, torch.tensor(list(self.exemplars), dtype=labels.dtype))
        images, labels, tasks = images[~known], labels[~known], tasks[~known]
        quota = self.max_size // max(1, len(self.exemplars) + len(labels.unique()))
        if len(labels) and quota:
            device, training = agent_state.device, agent_state.model.training
            index, made = self.make(agent_state.model.eval(), images.to(device), labels.to(device), quota)
            agent_state.model.train(training)
            for label in labels[index].unique().tolist():
                mine = labels[index] == label
                self.exemplars[label] = made[mine], int(tasks[index][mine][0])
        self.resize(agent_state, self.max_size)

    def make(self, model: nn.Module, images: Tensor, labels: Tensor, quota: int) -> tuple[Tensor, Tensor]:
        """`quota` exemplars of each class: indices int64 [m] of the images they start from, and what they became."""
        if self.kind == "random":
            index = random_selection(labels.cpu(), quota, self.generator)
        else:
            with torch.no_grad():
                features = torch.cat([(self.features or model)(batch) for batch in images.split(256)])
            index = herding_selection(features.cpu(), labels.cpu(), quota)
        made = images[index]
        if self.kind == "mnemonics":

            def validation() -> tuple[Tensor, Tensor]:
                batch = torch.randint(len(labels), (self.settings.val_batch_size,), generator=self.generator)
                return images[batch], labels[batch]

            made = optimise_exemplars(
                model, made, labels[index], validation, self.settings, low=images.min(), high=images.max()
            )
        return index, made.cpu()

    def resize(self, strategy: Any, new_size: int) -> None:
        """Keep the first exemplars of each class, equally many, `new_size` in all."""
        self.max_size, quota = new_size, new_size // max(1, len(self.exemplars))
        self.exemplars = {label: (images[:quota], task) for label, (images, task) in self.exemplars.items()}
        if not self.exemplars:
            return
        images = torch.cat([images for images, _ in self.exemplars.values()])
        labels = [label for label, (images, _) in self.exemplars.items() for _ in images]
        tasks = [task for images, task in self.exemplars.values() for _ in images]
        attributes = DataAttribute(tasks, "targets_task_labels", use_in_getitem=True)
        self.buffer = AvalancheDataset(
            [WithIntegerLabels(images, torch.tensor(labels))],
            data_attributes=[DataAttribute(labels, "targets"), attributes],
        )


class WithIntegerLabels(TensorDataset):
    """Avalanche's own data sets give labels as integers, and batches mix both."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image, int(label)
