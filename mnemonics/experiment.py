"""The phase loop: Algorithm 1 of the paper."""

import functools
from pathlib import Path

import torch
from torch import nn

from mnemonics import report
from mnemonics.baselines import BASELINES
from mnemonics.baselines.base import Baseline
from mnemonics.config import ExperimentConfig
from mnemonics.data.batches import LabelledImages
from mnemonics.distributed import from_main, is_main, same_everywhere
from mnemonics.evaluation import accuracies, class_means, features_of, predict
from mnemonics.exemplars.base_level import BilevelSettings
from mnemonics.exemplars.bilevel import adjust_old_exemplars, optimise_new_exemplars
from mnemonics.exemplars.memory import exemplars_per_class
from mnemonics.exemplars.selection import herding_selection, random_selection
from mnemonics.phase0 import trained_or_taken
from mnemonics.protocol import Phase
from mnemonics.runfolder import finished_results, open_run, save_phase
from mnemonics.runlog import RunLog
from mnemonics.runtime import NonFiniteLossError, peak_memory_bytes, seed_of, timed
from mnemonics.setup import Experiment, State, announcement, set_up
from mnemonics.training import finetune_on_exemplars, train_phase


def run(user: ExperimentConfig) -> tuple[dict, Path]:
    """Run an experiment from wherever its run folder says it stopped. Returns (results.json as a dict, run folder)."""
    experiment = set_up(user)
    state = open_run(experiment)
    with RunLog(experiment.folder) as log:
        for line in announcement(experiment, state):
            log.line(line)
        baseline = BASELINES[experiment.config.baseline](experiment.config)
        for phase in experiment.protocol.phases[len(state.phases) :]:
            try:
                run_phase(experiment, baseline, phase, state, log)
            except NonFiniteLossError as error:
                raise NonFiniteLossError(f"phase {phase.index}, {error}") from None
            from_main(functools.partial(save_phase, experiment, phase, state))
            log.line(phase_line(state.phases[-1]))
    return from_main(lambda: finished_results(experiment, state)), experiment.folder


def run_phase(experiment: Experiment, baseline: Baseline, phase: Phase, state: State, log: RunLog) -> None:
    """One phase of Algorithm 1; updates `state` in place."""
    config, prep, device = experiment.config, experiment.prep, experiment.device
    seconds: dict[str, float] = {}
    new_data, held_out = split_off(experiment, baseline, phase)  # D_i
    with timed(seconds, "train", device):
        facts = learn_classes(experiment, baseline, phase, new_data, held_out, state, log)  # Eq. 6
        same_everywhere(state.model.state_dict().values())
    with timed(seconds, "exemplars", device):
        per_class, _ = quotas(experiment, baseline, phase)
        start, new, losses = renew_exemplars(experiment, phase, new_data, per_class, state)  # Eq. 9, 10
        same_everywhere([state.memory.data.images])
    before = after = evaluate(experiment, phase, state, seconds)
    if config.finetune_epochs and phase.index > 0:  # after phase 0 there is no bias to remove
        with timed(seconds, "finetune", device):
            draws = experiment.generator(phase, "fine-tuning")
            finetune_on_exemplars(state.model, state.memory, prep, config, draws)
            baseline.calibrate(state.model, state.held_out.data, prep)
            same_everywhere(state.model.state_dict().values())
        after = evaluate(experiment, phase, state, seconds)
    if losses:
        facts |= {"exemplar_validation_loss": losses, "exemplar_change_grey_levels": mean_change(start, new)}
        for name, loss in losses.items():
            log.scalar(f"exemplars/validation_loss_{name}", loss, phase.index)
    state.phases.append(phase_result(phase, state, before, after, facts, seconds, device))
    if is_main():
        draw_exemplars(experiment, phase, start, new)
    for name, percent in after["accuracy"].items():
        log.scalar(f"accuracy/{name}", percent, phase.index)


def quotas(experiment: Experiment, baseline: Baseline, phase: Phase) -> tuple[int, int]:
    """How many exemplars each class may keep after `phase`: (for training, held out by the baseline)."""
    per_class = exemplars_per_class(experiment.config, phase.seen, experiment.source.smallest_class()[1])
    held_out = baseline.held_out(per_class)
    return per_class - held_out, held_out


def split_off(experiment: Experiment, baseline: Baseline, phase: Phase) -> tuple[LabelledImages, LabelledImages]:
    """D_i, split into what the model level and the exemplars may use, and what the baseline holds out (often nothing):
    random images of each class that will be stored as they are."""
    data = experiment.train_data([phase])
    _, per_class = quotas(experiment, baseline, phase)
    if per_class == 0:
        return data, data[:0]
    chosen = random_selection(data.labels, per_class, experiment.generator(phase, "held-out images"))
    rest = torch.ones(len(data), dtype=torch.bool, device=data.labels.device)
    rest[chosen] = False
    return data[rest], data[chosen]


def learn_classes(
    experiment: Experiment,
    baseline: Baseline,
    phase: Phase,
    new_data: LabelledImages,
    held_out: LabelledImages,
    state: State,
    log: RunLog,
) -> dict:
    """Train the model of `state` on D_i and the exemplars, with the loss of the baseline (Eq. 6), and let the baseline
    calibrate it. The memory is then cut to what may be kept, and what is held out added to it.

    Phase 0 trains on what is held out too: nothing is calibrated there, and so all baselines have the same model.

    Returns:
        What results.json says of it.
    """
    config, prep = experiment.config, experiment.prep
    if phase.index == 0 and len(held_out):
        new_data = experiment.train_data([phase])
    old_data = state.memory.data if baseline.rehearses == "exemplars" else state.memory.data[:0]
    if baseline.rehearses == "everything" and phase.index > 0:
        old_data = experiment.train_data(list(experiment.protocol.phases[: phase.index]))
    data, draws = new_data.and_also(old_data), experiment.generator(phase, "training")
    torch.manual_seed(seed_of(config.random_seed, phase.index, "new class weights"))
    baseline.begin_phase(state.model, phase, new_data, prep)
    train = functools.partial(train_phase, state.model, baseline, phase, data, prep, config, draws, log)
    shared = trained_or_taken(experiment, state.model, data, train) if phase.index == 0 else train()
    if shared and shared["taken"]:
        log.line(f"phase 0: model {shared['key']} of {config.phase0_dir}, trained in {shared['train_seconds']:.0f} s")
    kept, kept_held_out = quotas(experiment, baseline, phase)
    state.memory = state.memory.shrunk_to(kept)
    state.held_out = state.held_out.shrunk_to(kept_held_out).extended(held_out.loaded())
    baseline.calibrate(state.model, state.held_out.data, prep)
    facts = {"train_images": {"new": len(new_data), "old": len(old_data)}}
    return facts | ({"phase0_model": shared} if shared else {})


def renew_exemplars(
    experiment: Experiment, phase: Phase, new_data: LabelledImages, per_class: int, state: State
) -> tuple[LabelledImages, LabelledImages, dict[str, float] | None]:
    """Make `per_class` exemplars of each new class (Eq. 9), adjust old ones (Eq. 10) and put both into the memory of
    `state`.

    Returns:
        The real images started from, the new exemplars, and their validation losses where they were optimised.
    """
    config, prep, model = experiment.config, experiment.prep, state.model
    start = new = select_exemplars(experiment, phase, model, new_data, per_class)
    old, losses = state.memory, None
    settings, augmented = BilevelSettings.of(config), config.mnemonics_augment
    if config.exemplars == "mnemonics":
        draws = experiment.generator(phase, "new exemplars")
        joint = old.data if config.mnemonics_base == "joint" else None
        new, losses = optimise_new_exemplars(model, start, new_data, prep, settings, draws, joint, augmented)
    if config.adjust_always or (config.exemplars == "mnemonics" and not config.no_adjust):
        draws = experiment.generator(phase, "old exemplars")
        old = adjust_old_exemplars(model, old, prep, settings, draws, augmented)
    state.memory = old.extended(new)
    return start, new, losses


def mean_change(start: LabelledImages, new: LabelledImages) -> float:
    """Mean absolute difference of the pixels, in grey levels (of 255)."""
    return round((new.images.float() - start.images.float()).abs().mean().item(), 3)


def select_exemplars(
    experiment: Experiment, phase: Phase, model: nn.Module, new_data: LabelledImages, per_class: int
) -> LabelledImages:
    """Real images of the new classes: by herding, or at random (also where mnemonics start from)."""
    config = experiment.config
    if "herding" in (config.exemplars, config.mnemonics_start if config.exemplars == "mnemonics" else None):
        features = features_of(model, new_data.images, experiment.prep, config.eval_batch_size)
        return new_data[herding_selection(features, new_data.labels, per_class)].loaded()
    chosen = random_selection(new_data.labels, per_class, experiment.generator(phase, "exemplar choice"))
    return new_data[chosen].loaded()


def evaluate(experiment: Experiment, phase: Phase, state: State, seconds: dict[str, float]) -> dict[str, dict]:
    """CNN, NME and, with --ncm, NCM accuracies on the test images of all classes seen; see `accuracies`."""
    config, prep, batch_size = experiment.config, experiment.prep, experiment.config.eval_batch_size
    with timed(seconds, "evaluate", experiment.device):
        means = {"nme": class_means(state.model, state.exemplars, phase.seen, prep, batch_size)}
        if config.ncm:
            all_data = experiment.train_data(list(experiment.protocol.phases[: phase.index + 1]))
            means["ncm"] = class_means(state.model, all_data, phase.seen, prep, batch_size)
        test = experiment.test_data(phase)
        predictions = predict(state.model, test.images, means, prep, batch_size)
        origin = torch.from_numpy(experiment.protocol.phase_of_label()).to(experiment.device)
        return accuracies(predictions, test.labels, origin)


def phase_result(
    phase: Phase,
    state: State,
    before: dict,
    after: dict,
    facts: dict,
    seconds: dict[str, float],
    device: torch.device,
) -> dict:
    """The entry of this phase in results.json: `facts` and what is the same for every phase."""
    counts = torch.bincount(state.exemplars.labels)
    both = {
        key: after[key] | {f"{name}_before_finetune": value for name, value in before[key].items()}
        for key in ("accuracy", "phase0_accuracy")
    }
    return {
        "phase": phase.index,
        "classes_seen": phase.seen,
        "exemplars_per_class": {"min": int(counts.min()), "max": int(counts.max())},
        "exemplar_bytes": state.exemplars.bytes,
        **both,
        "accuracy_by_phase_of_origin": after["by_origin"],
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        **facts,
    }


def phase_line(result: dict) -> str:
    """One line on a finished phase."""
    percents = ", ".join(
        f"{name.upper()} {value:.2f}%"
        for name, value in result["accuracy"].items()
        if not name.endswith("_before_finetune")
    )
    return (
        f"phase {result['phase']}: {result['classes_seen']} classes, {percents}; "
        f"{sum(result['seconds'].values()):.1f} s"
    )


def draw_exemplars(experiment: Experiment, phase: Phase, start: LabelledImages, new: LabelledImages) -> None:
    """Write exemplars_phase_<i>.png."""
    names = [experiment.source.class_names[c] for c in experiment.protocol.order]
    path = experiment.folder / f"exemplars_phase_{phase.index}.png"
    report.plot_exemplars(start.images.cpu(), new.images.cpu(), new.labels.cpu(), names, path)
