"""Exemplars: the memory, how real images are chosen, and how their pixels are optimised."""

from mnemonics.exemplars.base_level import BilevelSettings
from mnemonics.exemplars.meta_level import optimise_exemplars

__all__ = ["BilevelSettings", "optimise_exemplars"]
