"""Every setting of an experiment: one frozen dataclass, from which the command line is built."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mnemonics.config.checks import check_lr_drops, check_setting
from mnemonics.engine.errors import UsageError

IMAGENET = ("imagenet_sub", "imagenet")
LARGEST_SMALL_IMAGE = 64  # pixels; larger images have the network, schedule and augmentation of ImageNet


def setting(
    default: Any, help: str, *, type: Any = None, choices: Sequence[str] = (), affects_results: bool = True
) -> Any:
    """A dataclass field that is also a command-line flag; `type` is needed where the default is None."""
    metadata = {"help": help, "type": type, "choices": choices, "affects_results": affects_results}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run. A field that is None is filled in by `resolved`; `config.json` holds what it became."""

    # data and protocol
    dataset: str = setting(
        "cifar100",
        "which images to learn: CIFAR-100; scikit-learn's handwritten digits at 16x16 pixels; ImageNet or 100 classes "
        "of it, as process_imagenet/ makes them; any folder with train/<class>/* and val/<class>/*",
        choices=("cifar100", "digits", "imagenet_sub", "imagenet", "folder"),
    )
    data_dir: str = setting(
        "data", "folder that holds the data set, or where it is downloaded to", affects_results=False
    )
    nb_phases: int | None = setting(
        None, "incremental phases N after phase 0; must divide the classes left (5)", type=int
    )
    nb_cl_fg: int | None = setting(None, "classes in phase 0 (half of all)", type=int)
    nb_cl: int | None = setting(None, "classes in each later phase: another way to say --nb_phases", type=int)
    order_seed: int = setting(1993, "seed of the class order")
    max_images_per_class: int | None = setting(
        None, "use only the first images of each class, training and test (all)", type=int
    )
    image_size: int | None = setting(
        None,
        "height and width in pixels that images of files are shown at (ImageNet: 224; folder: what the first "
        "training image has on its short side, at most 224)",
        type=int,
    )

    # method
    method: str = setting(
        "mnemonics",
        "the paper's two columns: mnemonics = --exemplars mnemonics --weight_transfer and fine-tuning on exemplars; "
        "baseline = --exemplars herding --no-weight_transfer --finetune_epochs 0; single flags override",
        choices=("mnemonics", "baseline"),
    )
    baseline: str = setting(
        "lucir",
        "loss and test-time classifier; the bounds: finetune = no exemplars, joint = all data seen so far",
        choices=("lucir", "icarl", "lwf", "bic", "finetune", "joint"),
    )
    weight_transfer: bool | None = setting(
        None,
        "from phase 1 on freeze the convolution weights and learn a factor per pair of channels (by --method)",
        type=bool,
    )
    exemplars: str | None = setting(
        None, "how exemplars are made (by --method)", type=str, choices=("mnemonics", "herding", "random")
    )
    network: str = setting(
        "auto",
        "network; auto is resnet32 for images of up to 64 pixels, resnet18 for larger ones",
        choices=("auto", "resnet8", "resnet20", "resnet32", "resnet56", "resnet18"),
    )
    nb_protos: int | None = setting(None, "exemplars kept per class (20); excludes --total_memory", type=int)
    total_memory: int | None = setting(None, "exemplars kept in total, shared equally by the classes seen", type=int)

    # model level (Eq. 6)
    epochs: int | None = setting(None, "epochs of each phase (160; 90 for images of more than 64 pixels)", type=int)
    lr_drops: str | None = setting(
        None,
        "shares of the epochs after which the learning rate drops tenfold (1/2,3/4; 1/3,2/3 for images of more than "
        "64 pixels)",
        type=str,
    )
    base_lr: float = setting(0.1, "learning rate of the model level")
    custom_momentum: float = setting(0.9, "momentum of the model level")
    custom_weight_decay: float = setting(5e-4, "weight decay of the model level")
    train_batch_size: int = setting(128, "training batch size of the model level")
    eval_batch_size: int = setting(200, "batch size of evaluation and feature extraction")
    T: float = setting(2.0, "temperature of the distillation")
    beta: float = setting(0.25, "LwF and iCaRL: weight of the distillation")
    lamda: float | None = setting(
        None,
        "LUCIR: weight of the less-forget loss, before its factor sqrt(old / new classes) (5; 10 for images of more "
        "than 64 pixels)",
        type=float,
    )
    K: int = setting(2, "LUCIR: new classes that the margin ranking loss keeps away from each exemplar")
    dist: float = setting(0.5, "LUCIR: margin of the margin ranking loss, a difference of cosines")
    lw_mr: float = setting(1.0, "LUCIR: weight of the margin ranking loss")

    # exemplar level (Eq. 7-10) and end-of-phase fine-tuning
    mnemonics_preset: str = setting(
        "default",
        "where the settings below that are not given come from: default = those chosen in "
        "results/exemplar_study.md; paper = the paper's",
        choices=("default", "paper"),
    )
    mnemonics_variant: str = setting(
        "unroll",
        "what the exemplar gradient runs through: K steps on all weights, K steps on the classifier's weights, or "
        "the class means of the exemplars' features",
        choices=("unroll", "unroll-fc", "class-mean"),
    )
    mnemonics_base: str | None = setting(
        None,
        "what the base level trains on: the new exemplars, or jointly with the old ones (by preset)",
        type=str,
        choices=("new", "joint"),
    )
    mnemonics_start: str | None = setting(
        None, "which images new exemplars start from (by preset)", type=str, choices=("random", "herding")
    )
    mnemonics_steps: int | None = setting(
        None, "K: base-level steps that the exemplar gradient runs back through (by preset)", type=int
    )
    mnemonics_lr: float | None = setting(None, "a2: learning rate of the base level (by preset)", type=float)
    mnemonics_batch_size: int | None = setting(None, "batch size of base level and fine-tuning (by preset)", type=int)
    mnemonics_val_batch_size: int | None = setting(
        None, "validation images of each update of the exemplars (by preset)", type=int
    )
    mnemonics_disturb: float | None = setting(
        None,
        "noise on the model that exemplars are optimised for, drawn anew for each update, so that they also suit what "
        "later phases make of it: its size relative to the weights (by preset)",
        type=float,
    )
    mnemonics_epochs: int | None = setting(
        None, "exemplar updates per phase, of new exemplars and in adjusting each (by preset)", type=int
    )
    mnemonics_outer_lr: float | None = setting(
        None,
        "b1 = b2: learning rate of the pixels in normalised image units, halved every fifth of --mnemonics_epochs "
        "(by preset)",
        type=float,
    )
    mnemonics_optimizer: str | None = setting(
        None, "optimiser of the pixels (by preset)", type=str, choices=("adam", "sgd")
    )
    mnemonics_augment: bool | None = setting(
        None, "crop and mirror the batches of the base level at random (by preset)", type=bool
    )
    mnemonics_subsets: int = setting(2, "subsets of the old exemplars, each adjusted on the others (at least 2)")
    no_adjust: bool | None = setting(
        None, "leave old exemplars as they are: skip Eq. 10 (by preset, unless --adjust_always)", type=bool
    )
    adjust_always: bool = setting(
        False,
        "adjust old exemplars (Eq. 10) whatever --exemplars and the preset are: table 2 has such rows for all three",
    )
    finetune_epochs: int | None = setting(
        None,
        "epochs over the exemplars at the end of each phase from phase 1 on (by --method and preset; 0 for none)",
        type=int,
    )
    finetune_augment: bool = setting(False, "crop and mirror the batches of the fine-tuning at random")
    finetune_lr: float | None = setting(None, "learning rate of the fine-tuning (that of the base level)", type=float)

    # running
    ncm: bool = setting(False, "also report nearest-class-mean accuracy, whose means read all training data")
    random_seed: int = setting(1993, "seed of weights, batches, augmentation and exemplar choice")
    nb_runs: int = setting(
        1, "repeat with seeds random_seed, random_seed + 1, ... and report mean and 95%% CI", affects_results=False
    )
    phase0_dir: str | None = setting(
        None,
        "folder of phase-0 models: one that an equal run left there is used, otherwise it is trained and left there",
        type=str,
        affects_results=False,
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, ... or auto: a GPU where there is one", affects_results=False)
    gpu: int | None = setting(
        None, "number of the GPU: another way to say --device cuda:N", type=int, affects_results=False
    )
    num_workers: int | None = setting(
        None,
        "processes that decode images of files; 0: none but the main one (one per core, at most 16)",
        type=int,
        affects_results=False,
    )
    cuda_graphs: bool = setting(
        False, "capture the steps of the exemplar optimisation as CUDA graphs", affects_results=False
    )
    amp: str = setting(
        "auto",
        "bf16 in the training of the model level, never in the exemplar level: on, off, or auto: on a GPU",
        choices=("auto", "on", "off"),
    )
    deterministic: bool = setting(False, "bit-for-bit repeatable on CUDA too, at some cost in speed (a CPU always is)")
    checkpoint_minutes: float = setting(
        10.0, "minutes from one checkpoint to the next; there is one after each phase, too", affects_results=False
    )
    out: str | None = setting(None, "run folder (runs/<name made of the settings>)", type=str, affects_results=False)
    resume: bool = setting(
        True, "continue the run that the run folder holds; --no-resume starts it anew", affects_results=False
    )


FIELDS = {f.name: f for f in dataclasses.fields(ExperimentConfig)}
BOUNDS = ("finetune", "joint")  # lower and upper: nothing of the method applies to them


def build_parser() -> argparse.ArgumentParser:
    """The command line: one flag per field of `ExperimentConfig`."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Mnemonics Training: class-incremental learning with optimised exemplars.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for f in FIELDS.values():
        if f.type in (bool, bool | None):
            plain = f.default is False or f.name.startswith("no_")
            action = "store_true" if plain else argparse.BooleanOptionalAction
            parser.add_argument(f"--{f.name}", action=action, default=f.default, help=f.metadata["help"])
        else:
            parser.add_argument(
                f"--{f.name}",
                type=f.metadata["type"] or f.type,
                default=f.default,
                choices=f.metadata["choices"] or None,
                metavar=None if f.metadata["choices"] else "X",
                help=f.metadata["help"],
            )
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> ExperimentConfig:
    """Parse and check the command line.

    Raises:
        UsageError: for a value that makes no sense on its own (argparse itself exits with status 2 on unknown flags).
    """
    config = ExperimentConfig(**vars(build_parser().parse_args(arguments)))
    check(config)
    return config


def check(config: ExperimentConfig) -> None:
    """Reject values that make no sense whatever the data set is. Raises UsageError."""
    for name in FIELDS:
        check_setting(name, getattr(config, name))
    if config.image_size is not None and config.dataset not in (*IMAGENET, "folder"):
        raise UsageError(
            f"--image_size {config.image_size}: {config.dataset} has its own; only images of files have none"
        )
    check_lr_drops(config.lr_drops)
    if config.mnemonics_subsets < 2:
        raise UsageError(f"--mnemonics_subsets {config.mnemonics_subsets}: at least 2; --no_adjust skips the adjusting")
    if config.nb_protos is not None and config.total_memory is not None:
        raise UsageError(
            f"--nb_protos {config.nb_protos} and --total_memory {config.total_memory}: give one of the two, "
            "they are different experiments"
        )
    if config.no_adjust and config.adjust_always:
        raise UsageError("--no_adjust and --adjust_always: give one of the two")
    if config.baseline in BOUNDS and config.finetune_epochs:
        raise UsageError(
            f"--finetune_epochs {config.finetune_epochs} and --baseline {config.baseline}: a bound is not fine-tuned "
            "on exemplars; leave the flag out"
        )
    if config.gpu is not None and config.device not in ("auto", "cuda", f"cuda:{config.gpu}"):
        raise UsageError(f"--gpu {config.gpu} contradicts --device {config.device}: give one of the two")


def repetitions(config: ExperimentConfig) -> list[ExperimentConfig]:
    """The runs that --nb_runs stands for, each with its own seed and, below --out, its own folder."""
    if config.nb_runs == 1:
        return [config]
    seeds = range(config.random_seed, config.random_seed + config.nb_runs)
    folders = [None if config.out is None else f"{config.out}/seed{seed}" for seed in seeds]
    return [
        dataclasses.replace(config, nb_runs=1, random_seed=seed, out=folder)
        for seed, folder in zip(seeds, folders, strict=True)
    ]


def result_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that can change a number in results.json; a run is resumed only where all of them agree."""
    return {name: getattr(config, name) for name, f in FIELDS.items() if f.metadata["affects_results"]}
