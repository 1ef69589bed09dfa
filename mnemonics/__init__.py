"""Mnemonics Training (Liu et al., CVPR 2020): class-incremental learning with exemplars optimised pixel by pixel.

The library: `from mnemonics import BilevelSettings, exemplars_of, optimise_exemplars`.
"""

import importlib
from typing import Any

PLACES = {
    "BilevelSettings": "mnemonics.exemplars.base_level",
    "optimise_exemplars": "mnemonics.exemplars.meta_level",
    "exemplars_of": "mnemonics.reporting.export",
}
__all__ = [*PLACES]


def __getattr__(name: str) -> Any:
    """What the library offers is imported when it is asked for: the parts of the package need not wait for it."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)
