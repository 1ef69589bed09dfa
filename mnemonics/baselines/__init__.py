"""Baselines by the name that --baseline takes."""

from mnemonics.baselines.icarl import ICaRL
from mnemonics.baselines.lwf import LwF

BASELINES = {"icarl": ICaRL, "lwf": LwF}
