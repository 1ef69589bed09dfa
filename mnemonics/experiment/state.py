"""From the settings to everything the phase loop needs: data, protocol, device, run folder."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import run_name, settled
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.data.sources import ImageSource, load_source
from mnemonics.engine.device import generator, pick_device, prepare
from mnemonics.engine.distributed import main_first, world
from mnemonics.exemplars.memory import ExemplarMemory, check_budget
from mnemonics.protocol import Phase, Protocol, make_protocol


@dataclass(frozen=True)
class Experiment:
    """What does not change from phase to phase."""

    config: ExperimentConfig
    source: ImageSource
    protocol: Protocol
    prep: Preprocessing
    device: torch.device
    folder: Path

    def generator(self, phase: Phase, purpose: str) -> torch.Generator:
        return generator(self.config.random_seed, phase.index, purpose, self.device)

    def train_data(self, phases: list[Phase]) -> LabelledImages:
        """Training images of the classes new in `phases`."""
        return self.labelled(*self.source.train([c for phase in phases for c in phase.class_ids]))

    def test_data(self, phase: Phase) -> LabelledImages:
        """Test images of all classes seen after `phase`."""
        return self.labelled(*self.source.test(self.protocol.order[: phase.seen]))

    @property
    def names_of_labels(self) -> list[str]:
        """The names of all classes, in class order."""
        return [self.source.class_names[c] for c in self.protocol.order]

    def labelled(self, images: torch.Tensor, class_ids: torch.Tensor) -> LabelledImages:
        labels = torch.from_numpy(self.protocol.labels_of(class_ids.numpy()))
        return LabelledImages(images.to(self.device), labels.to(self.device))


@dataclass
class State:
    """What a phase leaves to the next one; a checkpoint holds exactly this."""

    model: nn.Module
    memory: ExemplarMemory
    held_out: ExemplarMemory  # exemplars that are kept away from all training, for `Baseline.calibrate`
    phases: list[dict]  # the "phases" of results.json
    confusion: Tensor | None = None  # int64 [classes seen, classes seen], after the last phase; of the headline
    # "config" and "environment" of results.json: how and where the last phase was finished
    settings: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)

    @property
    def exemplars(self) -> LabelledImages:
        """All that is stored of old classes: what the budget limits."""
        return self.memory.data.and_also(self.held_out.data)


def set_up(user: ExperimentConfig) -> Experiment:
    """Load the data, settle all settings and make the run folder's name.

    Raises:
        UsageError: for whatever the user has to change.
    """
    device = pick_device(user)
    prepare(device, user.deterministic)
    source = main_first(lambda: load_source(user))
    in_memory = isinstance(source.train_images, torch.Tensor)
    named, config = settled(user, source.num_classes, None if in_memory else source.image_size)
    check_budget(config, source)
    protocol = make_protocol(source.num_classes, config.nb_cl_fg, config.nb_cl, config.order_seed)
    folder = Path(config.out or Path("runs") / run_name(named))
    return Experiment(config, source, protocol, Preprocessing.of(source, device), device, folder)


def announcement(experiment: Experiment, state: State, under_way: bool) -> list[str]:
    """What a run says before it starts; `under_way`: whether it goes on in the middle of a phase."""
    config, source = experiment.config, experiment.source
    budget = f"{config.nb_protos} per class" if config.total_memory is None else f"{config.total_memory} in total"
    lines = [
        *source.notices,
        f"{source.name}: {source.num_classes} classes, {len(source.train_images)} training and "
        f"{len(source.test_images)} test images; phases: {config.nb_cl_fg} classes, then {config.nb_phases} x "
        f"{config.nb_cl}",
        f"{config.baseline}, {config.exemplars} exemplars ({budget}), weight transfer "
        f"{'on' if config.weight_transfer else 'off'}, {config.network} on {experiment.device}; "
        f"run folder {experiment.folder}",
    ]
    if world() > 1:
        backend, share = "nccl" if experiment.device.type == "cuda" else "gloo", config.train_batch_size / world()
        lines.append(
            f"{world()} processes ({backend}): batches of {config.train_batch_size} in all, {share:.4g} each; learning "
            "rate as configured"
        )
    if under_way:
        lines.append(f"resuming in phase {len(state.phases)}")
    elif state.phases:
        lines.append(f"resuming after phase {state.phases[-1]['phase']}")
    return lines
