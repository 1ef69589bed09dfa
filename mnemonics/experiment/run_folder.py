"""The run folder: what is written during and after each phase, and how a run is taken up again."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnemonics.baselines import BASELINES
from mnemonics.config.fields import ExperimentConfig, result_settings
from mnemonics.config.presets import OLDER
from mnemonics.data.batches import LabelledImages
from mnemonics.data.identity import difference
from mnemonics.data.images import DataError, usage_errors
from mnemonics.engine import files as checkpoint
from mnemonics.engine.device import environment, seed_of
from mnemonics.engine.distributed import from_main, is_main
from mnemonics.engine.errors import UsageError
from mnemonics.engine.progress import Partial
from mnemonics.evaluation import summary
from mnemonics.exemplars.codec import Codec, Page
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.experiment.results import Confusion, digest_of, write_confusion
from mnemonics.experiment.state import Experiment, State
from mnemonics.models import make_network, restore_network

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
OR_ANEW = "name another --out, or start anew with --no-resume"
KEPT = ("phases", "confusion", "settings", "environment")  # of `State`, as they are
WRITTEN = (NEWEST, PREVIOUS, *"phase_*.pt results.json confusion.json exemplars_phase_*.png".split())
WRITTEN += ("report.html", "log.txt", "events.*", "config.json", "test_files.txt")  # all that a run leaves


@contextlib.contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Make the run folder and keep it for this process alone. The system frees it at a crash.

    Raises:
        UsageError: if another process has it, or it cannot be made.
    """
    if not is_main():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+b", buffering=0)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot make this folder ({error.strerror}); name another one") from None
    with file:
        if not checkpoint.try_lock(file):
            file.seek(0)
            holder = file.read().decode(errors="replace") or "?"
            raise UsageError(f"--out {folder}: process {holder} is working on this run; wait, or name another folder")
        with checkpoint.naming(folder / ".lock"):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed: we are the only one
            leftover.unlink()
        yield


def open_run(experiment: Experiment, before: State | None = None) -> tuple[State, Partial | None, list[str]]:
    """Begin a run, or take up the run that is in its folder.

    Args:
        before: what the run begins with instead of a new network.
    Returns:
        The state after the last finished phase, how far the next one had come, and what the user has to know.
    Raises:
        UsageError: if the folder holds a run with other settings, or one of which nothing can be read.
    """
    config, scenario = experiment.config, experiment.scenario
    device = scenario.device
    name, notices = from_main(lambda: prepare_folder(experiment))
    if name is not None:
        stored = checkpoint.load(experiment.folder / name, device)
        with usage_errors(f"--out {experiment.folder / name}", f"; {OR_ANEW}"):
            memory = memory_of(stored["exemplars"], config)
        model = restore_network(config.network, stored["model"], device)
        state = State(model, memory, *(stored[name] for name in KEPT))
        partial = stored["partial"]
        if partial and partial["device"] != device.type:  # random draws are other ones on another kind of device
            partial = None
        return state, partial, notices
    if before is not None:
        return before, None, notices
    torch.manual_seed(seed_of(config.random_seed, 0, "weights"))
    model = make_network(config.network, len(scenario.protocol.phases[0].class_ids), device)
    size = scenario.source.image_size
    empty = ExemplarMemory.empty(size, device, Codec.of(config, size))
    return State(model, empty, []), None, notices


def stored_memory(memory: ExemplarMemory) -> dict[str, Tensor]:
    """What a checkpoint holds of a memory: of coded images the pages only, one after the other."""
    labels = {"labels": memory.data.labels, "held_out": memory.held_out}
    if not memory.pages:
        return labels | {"images": memory.data.images}
    codes = torch.frombuffer(bytearray(b"".join(page.code for page in memory.pages)), dtype=torch.uint8)
    pages = torch.tensor([(len(page.code), page.count) for page in memory.pages])
    return labels | {"codes": codes, "pages": pages, "size": torch.tensor(memory.codec.size)}


def memory_of(stored: dict[str, Tensor], config: ExperimentConfig) -> ExemplarMemory:
    """The memory that `stored_memory` was given, with its images decoded. Raises DataError for a damaged page,
    but one of a large image, which is decoded when it is used, only if its length is wrong."""
    labels, held_out = stored["labels"], stored["held_out"]
    if "images" in stored:
        codec, images, pages = Codec.of(config, stored["images"].shape[-1]), stored["images"], ()
    else:
        codec, (lengths, counts) = Codec.of(config, int(stored["size"])), stored["pages"].T.tolist()
        if min(lengths + counts) < 1 or (sum(lengths), sum(counts)) != (len(stored["codes"]), len(labels)):
            raise DataError("a page of exemplars has another length than its checkpoint says")
        pages = tuple(map(Page, (c.numpy().tobytes() for c in stored["codes"].cpu().split(lengths)), counts))
        images = codec.images_of(pages).to(labels.device)
    if len(images) != len(labels):
        raise DataError(f"{len(images)} exemplars with {len(labels)} labels")
    return ExemplarMemory(LabelledImages(images, labels), held_out, codec, pages)


def prepare_folder(experiment: Experiment) -> tuple[str | None, list[str]]:
    """Make the folder ready, with config.json.

    Returns:
        The name of the checkpoint to go on from, and notices; raises as `open_run`.
    """
    config, folder = experiment.config, experiment.folder
    refuse_other_files(folder)
    if not config.resume:  # remove what an earlier run wrote, and nothing else
        for path in written(folder):
            path.unlink()
    name, stored, notices = newest_checkpoint(folder)
    if name is None:  # it was stopped before its first checkpoint, or is new
        stored = {"settings": stored_settings(folder / "config.json") or result_settings(config)}
    refuse_other_settings(folder, stored["settings"], config)
    if name is not None and (differs := difference(stored["data"], experiment.scenario.identity)):
        raise UsageError(f"--data_dir: the run in {folder} has other data ({differs}); {OR_ANEW}")
    checkpoint.write_json(folder / "config.json", dataclasses.asdict(config))  # with the places that are used now
    if config.val_share is not None:
        test = experiment.scenario.source.test_images
        checkpoint.atomic_write(folder / "test_files.txt", b"\n".join([*test.names[test.rows.numpy()], b""]))
    return name, notices


def newest_checkpoint(folder: Path) -> tuple[str | None, dict | None, list[str]]:
    """The newest whole checkpoint of a run folder, what it says of settings and data, and notices of damaged newer
    ones, which are removed.

    Raises:
        UsageError: if there are checkpoints, but no whole one of this format.
    """
    of_phases = sorted(folder.glob("phase_*.pt"), key=lambda path: (len(path.name), path.name), reverse=True)
    names = [NEWEST, PREVIOUS, *(path.name for path in of_phases)]
    damaged: list[str] = []
    for name in (name for name in names if (folder / name).exists()):
        try:
            stored = checkpoint.load_alone(folder / name)
        except checkpoint.DamagedError:
            damaged.append(name)
            continue
        except ValueError as error:
            raise UsageError(f"--out {folder}: {error}; {OR_ANEW}") from None
        for other in damaged:
            (folder / other).unlink()  # lest it be kept as the previous one
        kept = {key: stored[key] for key in ("settings", "data")}
        return name, kept, [f"{folder / other} is damaged: going on from {name}" for other in damaged]
    if damaged:
        raise UsageError(f"--out {folder}: {', '.join(damaged)} damaged, and no other checkpoint is there; {OR_ANEW}")
    return None, None, []


def written(folder: Path) -> list[Path]:
    """The files in a folder that have names of those that a run writes."""
    return [path for pattern in WRITTEN for path in folder.glob(pattern)]


def refuse_other_files(folder: Path) -> None:
    """Raises UsageError where such files are not a run's: they would be lost."""
    found = sorted(path.name for path in written(folder))
    is_run = stored_settings(folder / "config.json") or any(name.endswith(".pt") for name in found)
    if found and not is_run:
        names = ", ".join(found)
        raise UsageError(f"--out {folder}: files of no run, which one would write over ({names}); name another folder")


def stored_settings(path: Path) -> dict | None:
    """What the config.json of a run holds; None where there is none, or another file of that name."""
    try:
        settings = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return settings if isinstance(settings, dict) and "dataset" in settings else None


def refuse_other_settings(folder: Path, stored: dict, config: ExperimentConfig) -> None:
    """Raises UsageError if a setting that can change results differs between `stored` and `config`."""
    stored = OLDER | stored
    differences = [
        f"--{name} {stored.get(name)} there, {value} now"
        for name, value in result_settings(config).items()
        if stored.get(name) != value
    ]
    if differences:
        raise UsageError(f"--out {folder}: holds a run with other settings ({'; '.join(differences)}); {OR_ANEW}")


def contents(experiment: Experiment, state: State) -> dict[str, Any]:
    """What a checkpoint holds of `state`, in tensors of its own."""
    return {
        "settings": dataclasses.asdict(experiment.config),
        "data": experiment.scenario.identity,
        "class_order": list(experiment.scenario.protocol.order),
        "phase": len(state.phases) - 1,
        "model": {name: tensor.clone() for name, tensor in state.model.state_dict().items()},
        "exemplars": stored_memory(state.memory),
        "phases": list(state.phases),
        "confusion": state.confusion,
        "environment": state.environment,
        "partial": None,
    }


def save_partial(experiment: Experiment, before: dict[str, Any], partial: Partial) -> None:
    """Write checkpoint.pt in the middle of a phase; `before` are the `contents` after the phase before."""
    whole = before | {"partial": partial | {"device": experiment.scenario.device.type}}
    checkpoint.save(experiment.folder / NEWEST, whole, keep=experiment.folder / PREVIOUS)


def save_phase(experiment: Experiment, state: State) -> None:
    """Write phase_<i>.pt and checkpoint.pt, from each of which results.json can be made again."""
    state.settings = dataclasses.asdict(experiment.config)
    state.environment = environment(experiment.scenario.device)
    whole = contents(experiment, state)
    checkpoint.save(experiment.folder / f"phase_{whole['phase']}.pt", whole)
    checkpoint.save(experiment.folder / NEWEST, whole, keep=experiment.folder / PREVIOUS)


def write_results(experiment: Experiment, state: State) -> dict:
    """Write results.json and confusion.json, unless they are there. Returns what results.json holds."""
    protocol, headline = experiment.scenario.protocol, BASELINES[experiment.config.baseline].headline
    results = {
        "config": state.settings,
        "environment": state.environment,
        "data": experiment.scenario.identity,
        "class_order": list(protocol.order),
        "class_order_sha256": protocol.order_sha256,
        "headline": headline,
        "phases": state.phases,
        "summary": summary(state.phases),
    }
    results["sha256"] = digest_of(results)
    checkpoint.write_json(experiment.folder / "results.json", results)
    names = experiment.scenario.names_of_labels[: len(state.confusion)]
    write_confusion(experiment.folder, Confusion(len(state.phases) - 1, headline, names, state.confusion.cpu().numpy()))
    return results
