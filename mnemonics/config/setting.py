"""What is known of one setting, and the fields that hold it."""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What is known of one setting beside its name."""

    help: str
    choices: tuple[str, ...] = ()  # those of data sets, networks, baselines and exemplars are the keys of their dicts
    defaults: Mapping[str, Any] = field(default_factory=dict)  # condition (see `presets.resolved`) -> value
    symbol: str = ""  # in the paper
    zero: bool = False  # whether 0 makes sense; nothing below does
    most: float | None = None  # of a number; None: what any number of its type may be
    affects_results: bool = True  # whether it can change a number in results.json
    affects_phase0: bool = True  # ... and one of the training of phase 0
    compared: bool = True  # whether tables beside the paper look at it
    used_by: str = ""  # what parts of a run use it (see `paper.settings`), any of these; empty: every run
    default: Any = None
    annotation: Any = None

    @property
    def type(self) -> type:
        """Without None."""
        return next(t for t in typing.get_args(self.annotation) or (self.annotation,) if t is not types.NoneType)


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A field of `ExperimentConfig`; `facts` are those of `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **facts)})


def later(default: Any, help: str, **facts: Any) -> Any:
    """One without effect on the training of phase 0."""
    return setting(default, help, affects_phase0=False, **facts)


def by_preset(default: Any, paper: Any, help: str, **facts: Any) -> Any:
    """One of the exemplar level, whose default depends on --mnemonics_preset."""
    facts = {"used_by": "optimises adjusts", "defaults": {"default": default, "paper": paper}} | facts
    return later(None, help, **facts)


def running(default: Any, help: str, **facts: Any) -> Any:
    """One that says how a run goes, and changes no result."""
    return setting(default, help, affects_results=False, **facts)
