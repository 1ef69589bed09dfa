"""The class order: in which order the classes of a data set arrive."""

import numpy as np

from mnemonics.engine.errors import UsageError


def class_order(num_classes: int, seed: int) -> tuple[int, ...]:
    """The class order of the paper's experiments: arange(num_classes) shuffled by numpy's legacy generator.

    Raises:
        UsageError: for a seed that this generator does not take.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"--order_seed {seed}: must be at least 0 and at most {2**32 - 1}")
    order = np.arange(num_classes)
    np.random.RandomState(seed).shuffle(order)
    return tuple(order.tolist())
