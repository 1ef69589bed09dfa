"""The class order: in which order the classes of a data set arrive."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from mnemonics.engine.errors import UsageError


def class_order(num_classes: int, seed: int, run: int = 0) -> tuple[int, ...]:
    """The class order of the paper's experiments: arange(num_classes) shuffled by numpy's legacy generator. With `run`
    it is the shuffle after so many others: later runs of the authors' code go on with the generator of the first.

    Raises:
        UsageError: for a seed that this generator does not take.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"--order_seed {seed}: must be at least 0 and at most {2**32 - 1}")
    generator = np.random.RandomState(seed)
    for _ in range(run + 1):
        order = np.arange(num_classes)
        generator.shuffle(order)
    return tuple(order.tolist())


def read_order(path: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """The class order of a text file that has the name of one class in each line, or its class id (0 is the first).

    Where all lines are names they are read as names, also those that are numbers. Empty lines do not count.

    Raises:
        UsageError: for a file that cannot be read, or that does not hold every class once.
    """
    text = normalize("NFC", content(path).decode(errors="replace"))
    ids = {normalize("NFC", name): class_id for class_id, name in enumerate(class_names)}
    lines = [line if line in ids else line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if line not in ids]
    if wrong and set(lines) <= (numbers := {str(class_id) for class_id in range(len(class_names))}):
        ids, wrong = {number: int(number) for number in numbers}, []
    if wrong:
        raise UsageError(f"--class_order {path}: {wrong[0]!r} is no class; {class_names[0]!r} would be one")
    order = [ids[line] for line in lines]
    absent = sorted(set(range(len(class_names))) - set(order))
    if absent or len(order) > len(class_names):
        problem = f"{class_names[absent[0]]!r} is missing" if absent else "a class is in two lines"
        raise UsageError(f"--class_order {path}: {problem}; each of the {len(class_names)} classes needs one line")
    return tuple(order)


def hash_of_order(order: str | tuple[int, ...]) -> str:
    """8 hex digits of the SHA-256 of such a file, or of an order. Raises UsageError where it cannot be read."""
    data = content(order) if isinstance(order, str) else ",".join(map(str, order)).encode()
    return hashlib.sha256(data).hexdigest()[:8]


def content(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"--class_order {path}: cannot be read ({error.strerror})") from None
