"""What each setting may be, whatever the others are, and the error that says so."""

import re
import sys
from fractions import Fraction
from typing import Any

from mnemonics.engine.errors import UsageError

NON_NEGATIVE = (
    *("finetune_epochs", "custom_momentum", "custom_weight_decay", "beta", "lamda", "dist", "lw_mr"),
    "mnemonics_disturb",
    *("gpu", "num_workers", "random_seed", "order_seed", "checkpoint_minutes"),
)
LARGEST = 2**31 - 1  # of all other whole numbers: what PyTorch takes as a size, or as a number of anything
LARGEST_OF = {
    "order_seed": 2**32 - 1,  # numpy's RandomState takes no more
    "random_seed": 2**63 - 1,
    "image_size": 2**13,  # a batch of larger images would not fit in any memory
    "nb_runs": 1000,
    "num_workers": 512,
}
SHARE = re.compile(r"[0-9]{1,9}/[0-9]{1,9}|[0-9]?\.[0-9]{1,17}")  # no exponents: Fraction writes 1e-999999999 out


def check_setting(name: str, value: Any) -> None:
    """Raises UsageError for a value that the setting `name` cannot have, whatever the others are."""
    if isinstance(value, str):
        check_text(name, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(name, value)


def check_text(name: str, value: str) -> None:
    """Raises UsageError for what no file system or device could be named, though a command line can hold it."""
    try:
        if value and "\0" not in value and value.encode():
            return
    except UnicodeEncodeError:
        raise UsageError(f"--{name} {value}: must be UTF-8; rename what is called so") from None
    raise UsageError(f"--{name} {value!r}: must be a text, without zero bytes; leave the flag out for its default")


def check_number(name: str, value: int | float) -> None:
    """Raises UsageError for numbers that are too small, too large or none."""
    least = "at least 0" if name in NON_NEGATIVE else "greater than 0"
    most = sys.float_info.max if isinstance(value, float) else LARGEST_OF.get(name, LARGEST)
    if not value >= 0 or (value == 0 and name not in NON_NEGATIVE):  # not >=: nan is neither
        raise UsageError(f"--{name} {value}: must be {least}")
    if value > most:
        raise UsageError(f"--{name} {value}: must be at most {most}")


def check_lr_drops(shares: str | None) -> None:
    """Raises UsageError unless `shares` is None or has the form 1/2,3/4."""
    if shares is None:
        return
    try:
        ascending = [Fraction(share if SHARE.fullmatch(share) else 0) for share in shares.split(",")]
    except ZeroDivisionError:
        ascending = [Fraction(0)]
    if not all(0 < share < 1 for share in ascending) or ascending != sorted(ascending):
        raise UsageError(f"--lr_drops {shares}: must be ascending shares between 0 and 1, as 1/2,3/4")
