"""The run folder: what is written after each phase, and how a run is taken up again."""

import dataclasses
import json
from pathlib import Path

import torch

from mnemonics import checkpoint, report
from mnemonics.baselines import BASELINES
from mnemonics.config import ExperimentConfig, UsageError, result_settings
from mnemonics.data.batches import LabelledImages
from mnemonics.distributed import from_main
from mnemonics.evaluation import summary
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.models import make_network, restore_network
from mnemonics.protocol import Phase
from mnemonics.runtime import environment, seed_of
from mnemonics.setup import Experiment, State

WRITTEN = (
    "checkpoint.pt",
    "phase_*.pt",
    "results.json",
    "exemplars_phase_*.png",
    "accuracy.png",
    "log.txt",
    "events.*",
)


def open_run(experiment: Experiment) -> State:
    """Make the run folder, or take up the run that is in it.

    Raises:
        UsageError: if it holds a run with other settings, or cannot be made.
    """
    config, device = experiment.config, experiment.device
    if from_main(lambda: prepare_folder(experiment)):
        state = checkpoint.load(experiment.folder / "checkpoint.pt", device)
        model = restore_network(config.network, state["model"], device)
        memories = [ExemplarMemory(LabelledImages(**state[name])) for name in ("exemplars", "held_out")]
        return State(model, *memories, state["phases"])
    torch.manual_seed(seed_of(config.random_seed, 0, "weights"))
    model = make_network(config.network, len(experiment.protocol.phases[0].class_ids), device)
    empty = ExemplarMemory.empty(experiment.source.image_size, device)
    return State(model, empty, empty, [])


def prepare_folder(experiment: Experiment) -> bool:
    """Make the run folder, with config.json. Returns whether it holds a run to take up; raises as `open_run`."""
    config, folder = experiment.config, experiment.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: cannot make this folder ({error.strerror}); name one that can be written"
        ) from None
    settings_file = folder / "config.json"
    if settings_file.exists() and config.resume:
        refuse_other_settings(folder, json.loads(settings_file.read_text()), config)
        if (folder / "checkpoint.pt").exists():
            return True
    elif settings_file.exists():
        clear(folder)
    checkpoint.write_json(settings_file, dataclasses.asdict(config))
    return False


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote into its run folder, and nothing else."""
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            path.unlink()


def refuse_other_settings(folder: Path, stored: dict, config: ExperimentConfig) -> None:
    """Raises UsageError if a setting that can change results differs between config.json and `config`."""
    differences = [
        f"--{name} {stored.get(name)} there, {value} now"
        for name, value in result_settings(config).items()
        if stored.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"--out {folder}: holds a run with other settings ({'; '.join(differences)}); name another "
            "folder, or start anew with --no-resume"
        )


def save_phase(experiment: Experiment, phase: Phase, state: State) -> None:
    """Write phase_<i>.pt and checkpoint.pt, from which results.json can be made again, then results.json."""
    whole = {
        "settings": dataclasses.asdict(experiment.config),
        "class_order": list(experiment.protocol.order),
        "phase": phase.index,
        "model": state.model.state_dict(),
        "exemplars": vars(state.memory.data),
        "held_out": vars(state.held_out.data),
    }
    checkpoint.save(experiment.folder / f"phase_{phase.index}.pt", whole)
    checkpoint.save(experiment.folder / "checkpoint.pt", whole | {"phases": state.phases})
    write_results(experiment, state)


def finished_results(experiment: Experiment, state: State) -> dict:
    """What results.json holds after the last phase. It is written again only if a kill came between the last checkpoint
    and it: otherwise its environment is that of the measurements, and has to stay so."""
    path = experiment.folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    return results if results.get("phases") == state.phases else write_results(experiment, state)


def write_results(experiment: Experiment, state: State) -> dict:
    """Write results.json and accuracy.png. Returns what results.json holds."""
    config, protocol = experiment.config, experiment.protocol
    results = {
        "config": dataclasses.asdict(config),
        "environment": environment(experiment.device),
        "class_order": list(protocol.order),
        "class_order_sha256": protocol.order_sha256,
        "headline": BASELINES[config.baseline].headline,
        "phases": state.phases,
        "summary": summary(state.phases),
    }
    checkpoint.write_json(experiment.folder / "results.json", results)
    report.plot_accuracy([(experiment.folder.name, results)], experiment.folder / "accuracy.png")
    return results
