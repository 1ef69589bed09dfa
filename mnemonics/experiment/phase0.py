"""The model of phase 0, shared by runs that would train the same one (--phase0_dir).

In phase 0 there is nothing to forget, so runs that differ only in baseline, exemplars or later phases train the same
network on the same images with the same draws. The file it is kept in is named by a key that holds everything its
weights depend on, the images themselves included: a run that takes it has the numbers of one that trained it (on a CPU
up to rounding, where it was trained with another number of threads).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnemonics.config.fields import phase0_settings
from mnemonics.data.scenario import PhaseContext, Scenario
from mnemonics.engine import files as checkpoint
from mnemonics.engine.distributed import from_main, is_main
from mnemonics.engine.errors import UsageError
from mnemonics.engine.progress import Progress

POLL_SECONDS = 0.2  # between tries to get a lock


def trained_or_taken(context: PhaseContext, model: nn.Module, train: Callable[[], None]) -> dict[str, Any]:
    """Make `model` the model of phase 0: call `train`, or copy the weights that an equal run left in --phase0_dir.

    Returns:
        What results.json says of it: key, whether it was taken, seconds of training.
    Raises:
        UsageError: if --phase0_dir cannot be written.
    """
    folder, key = Path(context.config.phase0_dir), key_of(context.scenario)
    progress = context.progress
    path = folder / f"{key}.pt"
    with locked(folder, key, progress) if is_main() else nullcontext():
        taken = from_main(lambda: is_there(path, progress))  # the others wait here for the lock of rank 0
        if taken:
            stored = checkpoint.load(path, context.scenario.device, checkpoint.OLDEST)
            model.load_state_dict(stored["model"])
            seconds = stored["train_seconds"]
            progress.line(f"phase 0: model {key} of {folder}, trained in {seconds:.0f} s")
        else:
            start, before = time.perf_counter(), progress.seconds.get("train", 0.0)
            train()
            seconds = round(before + time.perf_counter() - start, 3)
            if is_main():
                checkpoint.save(path, {"model": model.state_dict(), "train_seconds": seconds})
    return {"key": key, "taken": taken, "train_seconds": seconds}


def is_there(path: Path, progress: Progress) -> bool:
    """Whether the file of a model is there, whole."""
    try:
        checkpoint.load_alone(path, checkpoint.OLDEST)
    except FileNotFoundError:
        return False
    except ValueError as error:
        progress.line(f"{error}: training that model anew")
        return False
    return True


def key_of(scenario: Scenario) -> str:
    """32 hex digits of the SHA-256 of all that the weights after phase 0 depend on. What is not set is left out, so
    that a setting which comes later changes no key."""
    machine = {"torch": torch.__version__, "device": scenario.device.type}
    chosen = {name: value for name, value in phase0_settings(scenario.config).items() if value is not None}
    facts = chosen | machine | {"data": scenario.identity["fingerprint"]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def locked(folder: Path, key: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of one model: a second run waits instead of training it too. The system frees it at a crash."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{key}.lock").open("w")
    except OSError as error:
        raise UsageError(f"--phase0_dir {folder}: cannot be written ({error.strerror}); name another folder") from None
    with file:
        while not checkpoint.try_lock(file):
            progress.between()  # a run can be stopped here, too
            time.sleep(POLL_SECONDS)
        yield
