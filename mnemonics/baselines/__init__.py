"""Baselines by the name that --baseline takes."""

from mnemonics.baselines.bic import BiC
from mnemonics.baselines.bounds import Finetune, Joint
from mnemonics.baselines.icarl import ICaRL
from mnemonics.baselines.lucir import LUCIR
from mnemonics.baselines.lwf import LwF

BASELINES = {"lucir": LUCIR, "icarl": ICaRL, "lwf": LwF, "bic": BiC, "finetune": Finetune, "joint": Joint}
