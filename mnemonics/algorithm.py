"""The phase loop: Algorithm 1 of the paper."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from mnemonics.baselines import BASELINES
from mnemonics.baselines.base import Baseline
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages
from mnemonics.engine.device import give_back_memory, peak_memory_bytes, seed_of
from mnemonics.engine.distributed import from_main, is_main, same_everywhere
from mnemonics.engine.log import RunLog
from mnemonics.engine.progress import Partial, Progress, Signals, errors_of, refuse_non_finite
from mnemonics.evaluation import accuracies, class_means, confusion_matrix, features_of, predict
from mnemonics.exemplars.base_level import BilevelSettings
from mnemonics.exemplars.memory import exemplars_per_class
from mnemonics.exemplars.meta_level import adjust_old_exemplars, optimise_new_exemplars
from mnemonics.exemplars.selection import herding_selection, random_selection
from mnemonics.experiment.phase0 import trained_or_taken
from mnemonics.experiment.run_folder import contents, finished_results, in_hand, open_run, save_partial, save_phase
from mnemonics.experiment.state import Experiment, State, announcement, set_up
from mnemonics.protocol import Phase
from mnemonics.reporting.exemplar_grid import plot_exemplars
from mnemonics.training import finetune_on_exemplars, train_phase


def run(user: ExperimentConfig) -> tuple[dict, Path]:
    """Run an experiment from wherever its run folder says it stopped. Returns (results.json as a dict, run folder).

    Raises:
        UsageError: for whatever the user has to change.
        NonFiniteLossError, OutOfMemoryError: naming the phase; what was saved before it is whole.
        Interrupted: when a signal asked for it, after a checkpoint was written.
    """
    with Signals() as signals:
        experiment = set_up(user)
        with in_hand(experiment), signals.deferred():
            state, partial, notices = open_run(experiment)
            with RunLog(experiment.folder) as log:
                for line in [*notices, *announcement(experiment, state, partial is not None)]:
                    log.line(line)
                baseline = BASELINES[experiment.config.baseline](experiment.config)
                for phase in experiment.protocol.phases[len(state.phases) :]:
                    progress = progress_of(experiment, state, partial, signals, log)
                    with errors_of(progress):
                        run_phase(experiment, baseline, phase, state, log, progress)
                    from_main(functools.partial(save_phase, experiment, phase, state))
                    log.line(phase_line(state.phases[-1]))
                    partial = None
                    give_back_memory()
                    signals.check()
            return from_main(lambda: finished_results(experiment, state)), experiment.folder


def progress_of(
    experiment: Experiment, state: State, partial: Partial | None, signals: Signals, log: RunLog
) -> Progress:
    """The progress of the phase that follows `state`, from `partial` on; written into the run folder by rank 0."""
    write = functools.partial(save_partial, experiment, contents(experiment, state)) if is_main() else None
    minutes, number = experiment.config.checkpoint_minutes, len(state.phases)
    return Progress(write, minutes, signals, experiment.device, partial, number, log)


def run_phase(
    experiment: Experiment, baseline: Baseline, phase: Phase, state: State, log: RunLog, progress: Progress
) -> None:
    """One phase of Algorithm 1; updates `state` in place."""
    config = experiment.config
    new_data, held_out = split_off(experiment, baseline, phase)  # D_i
    with progress.timed("train"):
        facts = learn_classes(experiment, baseline, phase, new_data, held_out, state, log, progress)  # Eq. 6
    with progress.timed("exemplars"):
        per_class, _ = quotas(experiment, baseline, phase)
        start, new, losses = renew_exemplars(experiment, phase, new_data, per_class, state, progress)  # Eq. 9, 10
    test = functools.partial(evaluate, experiment, phase, state)
    with progress.timed("evaluate"):
        before = after = progress.once("evaluation", test, pure=True)
    if config.finetune_epochs and phase.index > 0:  # after phase 0 there is no bias to remove
        with progress.timed("finetune"):
            progress.once("fine-tuning", lambda: finetune(experiment, baseline, phase, state, progress))
        with progress.timed("evaluate"):
            after = progress.once("evaluation after fine-tuning", test, pure=True)
    refuse_non_finite(state.model)
    if losses:
        facts |= {"exemplar_validation_loss": losses, "exemplar_change_grey_levels": mean_change(start, new)}
        for name, loss in losses.items():
            log.scalar(f"exemplars/validation_loss_{name}", loss, phase.index)
    state.confusion = after["confusion"]
    state.phases.append(phase_result(phase, state, before, after, facts, progress.seconds, experiment.device))
    if is_main():
        log.image("exemplars", draw_exemplars(experiment, phase, start, new), phase.index)
    for kind in ("accuracy", "phase0_accuracy"):
        for name, percent in after[kind].items():
            log.scalar(f"{kind}/{name}", percent, phase.index)


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
    progress: Progress,
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
    progress.watch(state.model)
    kept, kept_held_out = quotas(experiment, baseline, phase)
    state.memory = state.memory.shrunk_to(kept)
    state.held_out = state.held_out.shrunk_to(kept_held_out).extended(held_out.loaded())

    def learn() -> dict:
        train = functools.partial(train_phase, state.model, baseline, phase, data, prep, config, draws, log, progress)
        shared = trained_or_taken(experiment, state.model, data, train, log, progress) if phase.index == 0 else train()
        baseline.calibrate(state.model, state.held_out.data, prep)
        same_everywhere(state.model.state_dict().values())
        facts = {"train_images": {"new": len(new_data), "old": len(old_data)}}
        return facts | ({"phase0_model": shared} if shared else {})

    return progress.once("training", learn)


def renew_exemplars(
    experiment: Experiment,
    phase: Phase,
    new_data: LabelledImages,
    per_class: int,
    state: State,
    progress: Progress,
) -> tuple[LabelledImages, LabelledImages, dict[str, float] | None]:
    """Make `per_class` exemplars of each new class (Eq. 9), adjust old ones (Eq. 10) and put both into the memory of
    `state`.

    Returns:
        The real images started from, the new exemplars, and their validation losses where they were optimised.
    """
    config, prep, model = experiment.config, experiment.prep, state.model
    settings, augmented = BilevelSettings.of(config), config.mnemonics_augment

    def select() -> dict:
        return vars(select_exemplars(experiment, phase, model, new_data, per_class))

    def optimise() -> tuple[Tensor, dict]:
        draws = experiment.generator(phase, "new exemplars")
        joint = state.memory.data if config.mnemonics_base == "joint" else None
        optimised, losses = optimise_new_exemplars(
            model, start, new_data, prep, settings, draws, joint, augmented, progress
        )
        same_everywhere([optimised.images])
        return optimised.images, losses

    def adjust() -> Tensor:
        draws = experiment.generator(phase, "old exemplars")
        adjusted = adjust_old_exemplars(model, state.memory, prep, settings, draws, augmented, progress)
        same_everywhere([adjusted.data.images])
        return adjusted.data.images

    start = new = LabelledImages(**progress.once("exemplar choice", select, pure=True))
    old, losses = state.memory, None
    if config.exemplars == "mnemonics":
        images, losses = progress.once("new exemplars", optimise)
        new = LabelledImages(images, start.labels)
    if config.adjust_always or (config.exemplars == "mnemonics" and not config.no_adjust):
        old = old.with_images(progress.once("old exemplars", adjust))
    state.memory = old.extended(new)
    return start, new, losses


def finetune(experiment: Experiment, baseline: Baseline, phase: Phase, state: State, progress: Progress) -> None:
    """Fine-tune the model of `state` on its memory, and let the baseline calibrate it."""
    draws = experiment.generator(phase, "fine-tuning")
    finetune_on_exemplars(state.model, state.memory, experiment.prep, experiment.config, draws, progress)
    baseline.calibrate(state.model, state.held_out.data, experiment.prep)
    same_everywhere(state.model.state_dict().values())


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


def evaluate(experiment: Experiment, phase: Phase, state: State) -> dict[str, dict]:
    """CNN, NME and, with --ncm, NCM accuracies on the test images of all classes seen; see `accuracies`. And
    "confusion": the confusion matrix of the headline classifier."""
    config, prep, batch_size = experiment.config, experiment.prep, experiment.config.eval_batch_size
    means = {"nme": class_means(state.model, state.exemplars, phase.seen, prep, batch_size)}
    if config.ncm:
        all_data = experiment.train_data(list(experiment.protocol.phases[: phase.index + 1]))
        means["ncm"] = class_means(state.model, all_data, phase.seen, prep, batch_size)
    test = experiment.test_data(phase)
    predictions = predict(state.model, test.images, means, prep, batch_size)
    origin = torch.from_numpy(experiment.protocol.phase_of_label()).to(experiment.device)
    headline = predictions[BASELINES[config.baseline].headline]
    confusion = confusion_matrix(headline, test.labels, phase.seen)
    return accuracies(predictions, test.labels, origin) | {"confusion": confusion}


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


def draw_exemplars(experiment: Experiment, phase: Phase, start: LabelledImages, new: LabelledImages) -> Path:
    """Write exemplars_phase_<i>.png. Returns its path."""
    names, path = experiment.names_of_labels, experiment.folder / f"exemplars_phase_{phase.index}.png"
    plot_exemplars(start.images.cpu(), new.images.cpu(), new.labels.cpu(), names, path)
    return path
