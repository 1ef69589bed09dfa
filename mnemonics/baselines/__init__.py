"""Baselines by the name that --baseline takes."""

from mnemonics.baselines.bic import BiC
from mnemonics.baselines.icarl import ICaRL
from mnemonics.baselines.lucir import LUCIR
from mnemonics.baselines.lwf import LwF
from mnemonics.baselines.plain import Finetune, Joint, Replay

BASELINES = {"lucir": LUCIR, "icarl": ICaRL, "lwf": LwF, "bic": BiC, "replay": Replay}
BASELINES |= {"finetune": Finetune, "joint": Joint}
