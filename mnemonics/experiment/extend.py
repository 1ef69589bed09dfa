"""More classes for a finished run (--extend): its phases stay as they are, and others follow with the new classes."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mnemonics.baselines import BASELINES
from mnemonics.config.fields import SETTINGS, ExperimentConfig
from mnemonics.data.identity import Identity, difference, identity_of
from mnemonics.data.image_source import ImageSource
from mnemonics.engine.device import pick_device
from mnemonics.engine.errors import UsageError
from mnemonics.exemplars.memory import ExemplarMemory, class_quota
from mnemonics.experiment.run_folder import KEPT
from mnemonics.experiment.state import Experiment, State, experiment_of, load
from mnemonics.experiment.stored import phase_files, read_state, restored
from mnemonics.protocol import phase_sizes


def extended(user: ExperimentConfig) -> tuple[Experiment, State]:
    """The experiment whose first phases are those of the run in the folder `user.extend`, and the state after them.

    Raises:
        UsageError: for whatever the user has to change.
    """
    run = Path(user.extend)
    files = phase_files(run)
    if not files:
        raise UsageError(f"--extend {run}: holds no phase_<i>.pt; name the folder of a finished run")
    newest = files[max(files)]
    stored = read_state(newest, pick_device(user.device, user.gpu))
    user = with_settings_of(user, stored["settings"])
    device, source = load(user)
    order = longer_order(run, stored, source.class_names)
    known = len(stored["class_order"])
    old_sizes = phase_sizes(known, None, user.nb_cl_fg, stored["settings"]["nb_cl"])
    if (done := len(stored["phases"])) < len(old_sizes):
        raise UsageError(f"--extend {run}: {done} of {len(old_sizes)} phases are done; finish it first")
    phases = user.nb_phases or (1 if user.nb_cl is None else None)
    later = *old_sizes[1:], *phase_sizes(len(order), phases, known, user.nb_cl)[1:]
    user = dataclasses.replace(user, nb_cl=",".join(map(str, later)), nb_phases=None)
    source = with_notice_of_other_images(run, stored["data"], source)
    experiment = experiment_of(user, device, source, order)
    if experiment.folder.resolve() == run.resolve():
        raise UsageError(f"--out {experiment.folder}: the run that is extended; name another folder")
    loaded = restored(experiment.config, stored, newest, device)
    refuse_lost_classes(run, experiment, loaded.memory)
    return experiment, State(loaded.model, loaded.memory, *(stored[name] for name in KEPT))


def with_notice_of_other_images(run: Path, stored: Identity, source: ImageSource) -> ImageSource:
    """`source` with a notice, if the images of the classes of the run are not those that it was made with."""
    position = {name: class_id for class_id, name in enumerate(stored["class_names"])}
    old_ids = torch.tensor([position.get(name, -1) for name in source.class_names])
    old: dict[str, Any] = {"class_names": tuple(stored["class_names"])}
    for split in ("train", "test"):
        class_ids = old_ids[getattr(source, f"{split}_class_ids")]
        images = getattr(source, f"{split}_images")[class_ids >= 0]
        old |= {f"{split}_images": images, f"{split}_class_ids": class_ids[class_ids >= 0]}
    if not (differs := difference(stored, identity_of(dataclasses.replace(source, **old)))):
        return source
    notice = f"--extend {run}: its classes have other images now ({differs})"
    return dataclasses.replace(source, notices=(*source.notices, notice))


def refuse_lost_classes(run: Path, experiment: Experiment, memory: ExemplarMemory) -> None:
    """Raises UsageError where a class's share of a fixed total will be less than its first page of coded exemplars,
    which ends where a share of the run that is extended did."""
    config, source = experiment.config, experiment.scenario.source
    quota = class_quota(config, source.train_counts(), memory.codec)
    held_out = BASELINES[config.baseline](config).held_out(quota)
    left = memory.shrunk_to(quota - held_out, held_out)
    parts = [(memory.training, left.training), *([(memory.calibration, left.calibration)] if held_out else [])]
    if any(len(now.labels.unique()) < len(before.labels.unique()) for before, now in parts):
        less = f"with {source.num_classes} classes some have a share of less than their first page of coded exemplars"
        raise UsageError(f"--extend {run}: {less}; runs with --nb_protos or --exemplar_bytes can be extended")


def with_settings_of(user: ExperimentConfig, stored: dict[str, Any]) -> ExperimentConfig:
    """The settings of a run, but where the user says how this run goes and what its new phases are. Raises UsageError
    for other flags that differ."""
    own = {name for name, known in SETTINGS.items() if not known.affects_results} | {"nb_cl", "nb_phases"}
    for name, known in SETTINGS.items():
        value = getattr(user, name)
        if name not in own and value not in (None, stored.get(name, known.default)):
            raise UsageError(f"--{name} {value}: {user.extend} was made with {stored.get(name)}; leave it out")
    return ExperimentConfig(**stored | {name: getattr(user, name) for name in own} | {"class_order": None})


def longer_order(run: Path, stored: dict[str, Any], class_names: tuple[str, ...]) -> tuple[int, ...]:
    """The class order of a run as class ids of a data set with more classes, then the new ones. Raises UsageError."""
    if stored.get("data") is None:
        raise UsageError(f"--extend {run}: made by an older version, which did not store the names of the classes")
    ids = {name: class_id for class_id, name in enumerate(class_names)}
    old = [stored["data"]["class_names"][class_id] for class_id in stored["class_order"]]
    if gone := [name for name in old if name not in ids]:
        raise UsageError(f"--data_dir: {gone[0]!r}, a class of {run}, is missing; its classes have to stay")
    if len(old) == len(ids):
        raise UsageError(f"--data_dir: no other classes than those of {run}; add folders of new ones")
    known = [ids[name] for name in old]
    return *known, *sorted(set(ids.values()) - set(known))
