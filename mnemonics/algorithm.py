"""Algorithm 1 of the paper: `run` goes through the phases, `run_phase` is one of them, step by step.

step of a phase                                       equation   function
train on D_i and the old classes' exemplars           5, 6       training.train_phase; the loss: baselines/
choose real images to start new exemplars from        7          exemplars.methods, exemplars.selection
base level: train a copy of the model on exemplars    8          exemplars.base_level.BaseLevel
meta level: optimise their pixels back through that   9          exemplars.meta_level.optimise_new_exemplars
adjust old exemplars, one half on the other           10         exemplars.meta_level.adjust_old_exemplars
fine-tune on the class-balanced exemplars                        training.finetune_on_exemplars
test on all classes seen so far                                  evaluation.evaluate
"""

import functools
from pathlib import Path

import torch

from mnemonics.baselines import BASELINES
from mnemonics.baselines.base import Baseline, distillation_scale
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages
from mnemonics.data.image_source import rank_within_class
from mnemonics.data.scenario import PhaseContext
from mnemonics.engine.device import give_back_memory, seed_of
from mnemonics.engine.distributed import from_main, is_main, same_everywhere
from mnemonics.engine.log import RunLog
from mnemonics.engine.progress import Progress, Signals, errors_of, refuse_non_finite
from mnemonics.evaluation import evaluate, phase_result
from mnemonics.exemplars.codec import Codec, Coded
from mnemonics.exemplars.memory import class_quota, stored
from mnemonics.exemplars.meta_level import adjust_old_exemplars
from mnemonics.exemplars.methods import EXEMPLARS, adjusts
from mnemonics.exemplars.selection import random_selection
from mnemonics.experiment.extend import extended
from mnemonics.experiment.phase0 import trained_or_taken
from mnemonics.experiment.run_folder import contents, open_run, reserved, save_partial, save_phase, write_results
from mnemonics.experiment.state import Experiment, State, announcement, set_up
from mnemonics.reporting.figures import plot_exemplars, shown_exemplars
from mnemonics.reporting.page import write_report
from mnemonics.reporting.text import is_finished, phase_line
from mnemonics.training import finetune_on_exemplars, train_phase


def run_phase(context: PhaseContext, baseline: Baseline, state: State) -> tuple[LabelledImages, LabelledImages]:
    """One phase of Algorithm 1; updates `state` in place. Returns the new exemplars: as real images, and as stored."""
    config, progress, model = context.config, context.progress, state.model
    limits, held_out_limits = quotas(context, baseline, state.memory.codec)
    new_data, held_out = split_off(context, state.memory.codec, held_out_limits)  # D_i, and what BiC holds out of it

    with progress.timed("train"):
        state.memory, before_training = state.memory.shrunk_to(limits[-1], held_out_limits[-1]), state.memory
        state.memory = state.memory.extended(held_out.data, held_out=True, pages=held_out.pages)
        facts = learn_classes(context, baseline, state, new_data, before_training.training)  # Eq. 5-6

    with progress.timed("exemplars"):
        old = state.memory.training
        start, new, facts_of_new = new_exemplars(context, state, new_data, limits)  # Eq. 7-9
        if adjusts(config):
            adjusted = progress.once("old exemplars", adjust_old_exemplars, context, model, old)  # Eq. 10
            state.memory = state.memory.with_images(adjusted)
        state.memory = state.memory.extended(new.data, pages=new.pages)
        facts |= facts_of_new | {"exemplar_bytes": state.memory.bytes}

    test = functools.partial(progress.once, pure=True)
    with progress.timed("evaluate"):
        before = after = test("evaluation", evaluate, context, model, state.memory.data, baseline.headline)
    if config.finetune_epochs and context.phase.index > 0:  # after phase 0 there is no bias to remove
        with progress.timed("finetune"):
            progress.once("fine-tuning", finetune, context, baseline, state)
        with progress.timed("evaluate"):
            stage = "evaluation after fine-tuning"
            after = test(stage, evaluate, context, model, state.memory.data, baseline.headline)

    refuse_non_finite(model)
    state.confusion = after["confusion"]
    state.phases.append(phase_result(context, state.memory.data, before, after, facts))
    return start, new.data


def quotas(context: PhaseContext, baseline: Baseline, codec: Codec) -> list[list[int]]:
    """What each class may keep, in images or bytes (see `class_quota`): for training, and held out by the baseline.
    Each ascending, what it is now after what it will be in later phases."""
    counts, protocol = context.scenario.source.train_counts(), context.scenario.protocol
    seen = [[counts[c] for c in protocol.order[: phase.seen]] for phase in protocol.phases[context.phase.index :]]
    wholes = [class_quota(context.config, counts_seen, codec) for counts_seen in seen]
    parts = [(whole - baseline.held_out(whole), baseline.held_out(whole)) for whole in wholes]
    return [sorted({min(quota, now) for quota in (now, *later)}) for now, *later in zip(*parts, strict=True)]


def split_off(context: PhaseContext, codec: Codec, limits: list[int]) -> tuple[LabelledImages, Coded]:
    """D_i, split into what may be trained on and optimised, and what is held out: random images of each class (often
    none), as many as it may keep of them, as they will be stored. Raises UsageError as `stored`."""
    data = context.new_data()
    if limits[-1] == 0:
        return data, codec.coded(data[:0])
    per_class = len(data) if codec.by_bytes else limits[-1]
    chosen = random_selection(data.labels, per_class, context.generator("held-out images"))
    at_most = torch.bincount(data.labels) // 2  # of a class with few images, half remains to be trained on
    labels = data.labels[chosen]
    chosen = chosen[rank_within_class(labels) < at_most[labels]]
    held_out = stored(context.config, codec, data[chosen], limits, context.scenario.names_of_labels)
    rest = torch.ones(len(data), dtype=torch.bool, device=data.labels.device)
    rest[chosen[held_out.kept]] = False
    return data[rest], held_out


def new_exemplars(
    context: PhaseContext, state: State, data: LabelledImages, limits: list[int]
) -> tuple[LabelledImages, Coded, dict]:
    """Choose exemplars from D_i and, if the method does, optimise them (Eq. 7-9). Returns them as real images and as
    stored, and what results.json says of them. Raises UsageError as `stored`."""
    config, once, codec, facts = context.config, context.progress.once, state.memory.codec, {}
    store = functools.partial(stored, config, codec, limits=limits, names=context.scenario.names_of_labels)
    method, per_class = EXEMPLARS[config.exemplars], len(data) if codec.by_bytes else limits[-1]
    chosen = once("exemplar choice", method.choose, context, state.model, data, per_class, pure=True)
    if method.optimise is not None and codec.by_bytes:
        chosen = chosen[store(images=data[chosen]).kept]  # those that fit before they are optimised
    start = new = data[chosen] if codec.by_bytes else data[chosen].loaded()  # of the former, only what fits is loaded
    if method.optimise is not None:
        start, old = start.loaded(), state.memory.training.loaded()
        optimise = once("new exemplars", method.optimise, context, state.model, start, data, old)
        images, facts["exemplar_validation_loss"] = optimise
        new = LabelledImages(images, start.labels)
        facts["exemplar_change_grey_levels"] = round((images.float() - start.images.float()).abs().mean().item(), 3)
    coded = store(images=new)
    if codec.format != "raw":
        facts |= {"exemplar_format": config.exemplar_format, "exemplar_psnr_db": coded.psnr}
    return start[coded.kept], coded, facts


def learn_classes(
    context: PhaseContext, baseline: Baseline, state: State, new_data: LabelledImages, exemplars: LabelledImages
) -> dict:
    """Train the model of `state` on D_i and the exemplars, with the loss of the baseline. Returns what results.json
    says of it.

    Phase 0 trains on what is held out too: nothing is calibrated there, and so all baselines have the same model.
    """
    new_data = context.new_data() if context.phase.index == 0 else new_data
    old_data = {"exemplars": exemplars, "nothing": exemplars[:0]}.get(baseline.rehearses)
    if old_data is None:
        old_data = context.earlier_data() if context.phase.index > 0 else exemplars[:0]
    torch.manual_seed(seed_of(context.config.random_seed, context.phase.index, "new class weights"))
    baseline.begin_phase(state.model, context.phase, new_data, context.prep)
    context.progress.watch(state.model)
    if context.config.scale_distillation and context.phase.index > 0:
        baseline.scale = distillation_scale(context.phase, len(new_data), len(old_data))
    data = new_data.followed_by(old_data)
    shared = context.progress.once("training", train, context, baseline, state, data)
    return {"train_images": {"new": len(new_data), "old": len(old_data)}} | shared


def train(context: PhaseContext, baseline: Baseline, state: State, data: LabelledImages) -> dict:
    """The model level, or a model of phase 0 that another run trained; then the baseline may calibrate the model.
    Returns what results.json says of a shared model of phase 0."""
    work, shared = functools.partial(train_phase, context, state.model, baseline, data), {}
    if context.phase.index == 0 and context.config.phase0_dir is not None:
        shared = {"phase0_model": trained_or_taken(context, state.model, work)}
    else:
        work()
    calibrate(context, baseline, state)
    return shared


def finetune(context: PhaseContext, baseline: Baseline, state: State) -> None:
    """Fine-tune the model of `state` on its exemplars; then the baseline may calibrate it."""
    finetune_on_exemplars(context, state.model, state.memory.training)
    calibrate(context, baseline, state)


def calibrate(context: PhaseContext, baseline: Baseline, state: State) -> None:
    baseline.calibrate(state.model, state.memory.calibration, context.prep)
    same_everywhere(state.model.state_dict().values())


# the run around the phases


def run(user: ExperimentConfig) -> tuple[dict, Path]:
    """Run an experiment from wherever its run folder says it stopped. Returns (results.json as a dict, run folder).

    Raises:
        UsageError: for whatever the user has to change.
        NonFiniteLossError, OutOfMemoryError: naming the phase; what was saved before it is whole.
        Interrupted: when a signal asked for it, after a checkpoint was written.
    """
    with Signals() as signals:
        experiment, before = (set_up(user), None) if user.extend is None else extended(user)
        with reserved(experiment.folder), signals.deferred():
            state, partial, notices = open_run(experiment, before)
            with RunLog(experiment.folder) as log:
                for line in [*notices, *announcement(experiment, state, partial is not None)]:
                    log.line(line)
                baseline = BASELINES[experiment.config.baseline](experiment.config)
                for phase in experiment.scenario.protocol.phases[len(state.phases) :]:
                    write = functools.partial(save_partial, experiment, contents(experiment, state))
                    minutes = experiment.config.checkpoint_minutes
                    progress = Progress(phase.index, partial, write if is_main() else None, minutes, signals, log)
                    with errors_of(progress):
                        start, new = run_phase(PhaseContext(experiment.scenario, phase, progress), baseline, state)
                    from_main(functools.partial(finish_phase, experiment, state, log, start, new))
                    partial = None
                    give_back_memory()
                    signals.check()
            return from_main(functools.partial(finish_run, experiment, state)), experiment.folder


def finish_phase(experiment: Experiment, state: State, log: RunLog, start: LabelledImages, new: LabelledImages) -> None:
    """Write all files of a phase and log what it measured."""
    result = state.phases[-1]
    if len(new):
        picture = experiment.folder / f"exemplars_phase_{result['phase']}.png"
        names = experiment.scenario.names_of_labels
        shown = shown_exemplars(new.labels)
        before, after = (data[shown].loaded().images.cpu() for data in (start, new))
        plot_exemplars(before, after, new.labels[shown].cpu(), names, picture)
        log.image("exemplars", picture, result["phase"])
    for name, loss in result.get("exemplar_validation_loss", {}).items():
        log.scalar(f"exemplars/validation_loss_{name}", loss, result["phase"])
    for kind in ("accuracy", "phase0_accuracy"):
        for name, percent in result[kind].items():
            if not name.endswith("_before_finetune"):
                log.scalar(f"{kind}/{name}", percent, result["phase"])
    save_phase(experiment, state)
    results = write_results(experiment, state)
    log.line(phase_line(result))
    if not is_finished(results):  # the page of a finished run: `finish_run`
        write_report([experiment.folder], experiment.folder / "report.html", running=True)


def finish_run(experiment: Experiment, state: State) -> dict:
    """What results.json holds after the last phase; written again, if that is not what it holds, with its page."""
    results = write_results(experiment, state)
    write_report([experiment.folder], experiment.folder / "report.html")
    return results
