"""What can go wrong in a run that is nobody's mistake: errors that are told in one line, exit status 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mnemonics.engine.progress import Progress, is_finite
from mnemonics.protocol import Phase

UNROLL_FLAGS = "--mnemonics_batch_size, --mnemonics_val_batch_size, --mnemonics_steps or --nb_protos"
LESS_MEMORY = {  # stage -> what makes it smaller
    "training": "--train_batch_size",
    "exemplar choice": "--eval_batch_size",
    "new exemplars": UNROLL_FLAGS,
    "old exemplars": UNROLL_FLAGS,
    "fine-tuning": "--mnemonics_batch_size",
}


class RunError(RuntimeError):
    """The run cannot go on; the message says why, and what may help."""


class NonFiniteLossError(RunError):
    """A loss became NaN or infinite; the message says where and with which rate."""


class OutOfMemoryError(RunError):
    """There is not enough memory on the device; the message says for what, and which flag needs less."""


@contextmanager
def errors_of(phase: Phase, progress: Progress) -> Iterator[None]:
    """Make the errors of a phase say that they are."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"phase {phase.index}, {error}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        flag = LESS_MEMORY.get(progress.stage, "--eval_batch_size")
        reason = " ".join(str(error).split())[:200]
        raise OutOfMemoryError(
            f"phase {phase.index}, {progress.stage}: not enough memory on {progress.device}; a smaller {flag} needs "
            f"less ({reason})"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def refuse_non_finite(model: nn.Module) -> None:
    """Raises NonFiniteLossError if a weight is NaN or infinite."""
    if not is_finite(model):
        raise NonFiniteLossError("weights are NaN or infinite at its end; lower learning rates may help")
