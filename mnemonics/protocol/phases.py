"""Which classes arrive when: the class order, the phases and the label mapping (pure numpy).

A *label* in this project is always the position of a class in the class order: the first class seen is 0. The number a
data set gives to a class (alphabetical for CIFAR-100) is called its *class id* and appears only here and in `data`.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnemonics.engine.errors import UsageError


@dataclass(frozen=True)
class Phase:
    """One phase: labels `first` to `seen - 1` are new, all labels below `seen` are known after it."""

    index: int
    first: int  # label of the first new class = number of classes known before
    seen: int  # number of classes known after the phase
    class_ids: tuple[int, ...]  # class ids of the new classes, in the order of their labels

    @property
    def new_labels(self) -> range:
        return range(self.first, self.seen)


@dataclass(frozen=True)
class Protocol:
    """The class order cut into phases."""

    order: tuple[int, ...]  # order[label] = class id
    phases: tuple[Phase, ...]

    @property
    def order_sha256(self) -> str:
        """SHA-256 (hex) of the order written as comma-separated decimal class ids."""
        return hashlib.sha256(",".join(map(str, self.order)).encode()).hexdigest()

    def labels_of(self, class_ids: np.ndarray) -> np.ndarray:
        """Map class ids (int64 [n]) to labels (int64 [n]): positions in the order."""
        labels = np.zeros(max(self.order) + 1, np.int64)  # by class id, of which the data may have more
        labels[list(self.order)] = np.arange(len(self.order))
        return labels[class_ids]

    def phase_of_label(self) -> np.ndarray:
        """int64 [num_classes]: the phase in which each label was new."""
        return np.concatenate([np.full(len(p.class_ids), p.index) for p in self.phases])


def phase_sizes(
    num_classes: int, nb_phases: int | None, nb_cl_fg: int | None, nb_cl: int | str | None
) -> tuple[int, ...]:
    """Settle the three ways of saying the split into phases; `nb_cl` may be a list such as "7,5,5,3".

    Returns:
        The number of new classes in each phase.
    Raises:
        UsageError: when they contradict each other or do not fit the number of classes.
    """
    if num_classes < 2:
        raise UsageError(f"--data_dir: a data set with {num_classes} class; phases need at least 2 classes")
    first = num_classes // 2 if nb_cl_fg is None else nb_cl_fg
    left = num_classes - first
    if not 0 < first < num_classes:
        raise UsageError(f"--nb_cl_fg {first}: phase 0 needs 1 to {num_classes - 1} of the {num_classes} classes")
    later = numbers(nb_cl)
    if len(later) > 1:
        if sum(later) != left:
            raise UsageError(f"--nb_cl {nb_cl}: {sum(later)} classes, but {left} are left (see --nb_cl_fg)")
        if nb_phases not in (None, len(later)):
            raise UsageError(f"--nb_phases {nb_phases} contradicts --nb_cl {nb_cl}: give one of the two")
        return first, *later
    nb_cl = later[0] if later else None
    if nb_cl is not None and nb_phases is not None and nb_cl * nb_phases != left:
        raise UsageError(f"--nb_phases {nb_phases} contradicts --nb_cl {nb_cl} for {left} classes: give one of the two")
    if nb_cl is not None and left % nb_cl:
        raise UsageError(f"--nb_cl {nb_cl}: does not divide the {left} classes left; {divisors(left)} would")
    phases = nb_phases or (left // nb_cl if nb_cl else 5)
    if left % phases:
        would = f"{divisors(left)} would (or another --nb_cl_fg)"
        raise UsageError(f"--nb_phases {phases}: does not divide the {left} classes left after phase 0; {would}")
    return first, *[left // phases] * phases


def numbers(nb_cl: int | str | None) -> list[int]:
    """What --nb_cl says: "7,5,3" -> [7, 5, 3]. Raises UsageError."""
    parts = [] if nb_cl is None else str(nb_cl).split(",")
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UsageError(f"--nb_cl {nb_cl}: must be a number of classes greater than 0, or several as 7,5,5,3")
    return list(map(int, parts))


def divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def make_protocol(order: tuple[int, ...], sizes: Sequence[int]) -> Protocol:
    """Cut a class order into phases with so many new classes; there may be classes left after the last."""
    bounds = itertools.accumulate(sizes, initial=0)
    phases = tuple(Phase(i, a, b, order[a:b]) for i, (a, b) in enumerate(itertools.pairwise(bounds)))
    return Protocol(order, phases)
