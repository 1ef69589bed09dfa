"""Mnemonics Training (Liu et al., CVPR 2020): class-incremental learning with exemplars optimised pixel by pixel.

The library call: `from mnemonics import BilevelSettings, optimise_exemplars`.
"""

from typing import Any

__all__ = ["BilevelSettings", "optimise_exemplars"]


def __getattr__(name: str) -> Any:
    """The library call is imported when it is asked for: the parts of the package need not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mnemonics.exemplars import meta_level

    return getattr(meta_level, name)
