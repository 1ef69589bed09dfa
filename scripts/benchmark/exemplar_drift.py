"""What becomes of the exemplars of phase 0 in later phases: whether they move, and whether they follow the model.

    python scripts/benchmark/exemplar_drift.py runs/herding runs/mnemonics --out drift.json

For each phase of each run, over the exemplars of the classes of phase 0: how far their pixels are from what they were
after phase 0 (mean absolute difference, grey levels); the share that the network of that phase is right on, among all
classes seen, and its mean cross-entropy; the share that the network of phase 0 is right on; and, beside them, the share
of the test images of the same classes that the network of that phase is right on. Exemplars that a forgetting network
still finds easy tell it little about what it forgot. Exit status: 0 done, 2 something must be changed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mnemonics.data.batches import LabelledImages, Preprocessing, plain_batches
from mnemonics.data.scenario import Scenario
from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.files import write_json
from mnemonics.experiment.stored import Target, check_fit, own_target, scenario_of
from mnemonics.reporting.read import run_names, writing
from mnemonics.reporting.text import render_table, with_header


@torch.no_grad()
def fit(model: nn.Module, data: LabelledImages, prep: Preprocessing, batch_size: int) -> tuple[float, float]:
    """The share of `data` that the network is right on, in percent, and its mean cross-entropy."""
    model.eval()
    logits = torch.cat([model(prep.plain(batch)) for batch in plain_batches(data.images, batch_size, prep.mean.device)])
    right = (logits.argmax(1) == data.labels).float().mean().item()
    return round(100 * right, 2), round(F.cross_entropy(logits, data.labels).item(), 4)


def rows_of(name: str, target: Target, scenario: Scenario) -> Iterator[dict[str, Any]]:
    """A row per phase. Raises UsageError for a damaged file."""
    phases, prep, size = scenario.protocol.phases, scenario.prep, scenario.config.eval_batch_size
    classes, first = phases[0].seen, None
    test = scenario.labelled(*scenario.source.test(scenario.protocol.order[:classes]))
    for phase, path in sorted(target.files.items()):
        loaded = target.load(phase, path, scenario.device)
        check_fit(scenario, phases[phase], path, loaded)
        if loaded.exemplars is None:
            raise UsageError(f"{path}: holds no exemplars")
        exemplars = loaded.exemplars[loaded.exemplars.labels < classes]
        first = first or (loaded.model, exemplars)
        if len(exemplars) != len(first[1]):
            raise UsageError(f"{path}: exemplars were dropped, so that those left are not comparable")
        moved = (exemplars.images.float() - first[1].images.float()).abs().mean().item()
        accuracy, loss = fit(loaded.model, exemplars, prep, size)
        yield {
            "run": name,
            "phase": phase,
            "moved_grey_levels": round(moved, 3),
            "accuracy": accuracy,
            "loss": loss,
            "accuracy_of_phase_0": fit(first[0], exemplars, prep, size)[0],
            "test_accuracy": fit(loaded.model, test, prep, size)[0],
        }


@command("exemplar_drift.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the numbers."""
    parser = argparse.ArgumentParser(description="How exemplars of phase 0 and the network drift.", allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    add("--data_dir", help="folder of the data set (where the run had it)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    add("--out", type=Path, help="JSON file for the numbers (none)")
    options = parser.parse_args(arguments)
    runs = [(target, scenario_of(target)) for target in (own_target(path, options) for path in options.runs)]
    rows = [row for name, run in zip(run_names(options.runs), runs, strict=True) for row in rows_of(name, *run)]
    if options.out is not None:
        with writing(options.out):
            write_json(options.out, rows)
    print(render_table(with_header(rows), "markdown"))


if __name__ == "__main__":
    sys.exit(main())
