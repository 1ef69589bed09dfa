"""Every setting of an experiment: one frozen dataclass, whose fields hold all that is known of a setting.

The command line, the checks, the presets, the name of a run, the key of a shared phase-0 model and the comparison with
the paper are made from it: none of them has a list of settings of its own.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mnemonics.config.setting import Setting, by_preset, later, running, setting

LARGEST_SMALL_IMAGE = 64  # pixels; larger images have the network, schedule and augmentation of ImageNet
LARGEST = 2**31 - 1  # what PyTorch takes as a size, or as a number of anything


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run. A field that is None is filled in by `presets.resolved`; `config.json` holds what it
    became."""

    # data and protocol
    dataset: str = setting(
        "cifar100",
        "which images to learn: CIFAR-10 or -100; scikit-learn's handwritten digits at 16x16 pixels; ImageNet or 100 "
        "classes of it, as process_imagenet/ makes them; any folder with train/<class>/* and val/<class>/*",
    )
    data_dir: str = running("data", "folder that holds the data set, or where it is downloaded to")
    nb_phases: int | None = later(
        None, "incremental phases N after phase 0; must divide the classes left (5)", symbol="N"
    )
    nb_cl_fg: int | None = setting(None, "classes in phase 0 (half of all)")
    nb_cl: str | int | None = later(
        None, "classes in each later phase, another way to say --nb_phases; or of each, as 7,5,5,3", compared=False
    )
    order_seed: int = setting(1993, "seed of the class order", zero=True, most=2**32 - 1)  # numpy takes no more
    class_order: str | None = setting(
        None,
        "file with the class order instead: the name or the id of one class in each line; config.json holds its hash",
    )
    max_images_per_class: int | None = setting(None, "use only the first images of each class, training and test (all)")
    val_share: float | None = setting(
        None,
        "share of the images of each class that is for test, where a folder has <class>/* without train/ and val/",
        most=0.9,
    )
    image_size: int | None = setting(
        None,
        "height and width in pixels that images of files are shown at; of a folder: the median short side of its "
        "training images, at most 224",
        defaults={"imagenet_sub": 224, "imagenet": 224},
        most=2**13,  # a batch of larger images would not fit in any memory
    )

    # method
    method: str = later(
        "mnemonics",
        "the paper's two columns: mnemonics = --exemplars mnemonics --weight_transfer and fine-tuning on exemplars; "
        "baseline = --exemplars herding --no-weight_transfer --finetune_epochs 0; single flags override",
        choices=("mnemonics", "baseline"),
        compared=False,  # what it became is
    )
    baseline: str = later(
        "lucir", "loss and test-time classifier; the bounds: finetune = new data alone, joint = all data seen so far"
    )
    weight_transfer: bool | None = later(
        None,
        "from phase 1 on freeze the convolution weights and learn a factor per pair of channels",
        defaults={"bound": False, "mnemonics": True, "baseline": False},
    )
    exemplars: str | None = later(
        None,
        "how exemplars are made",
        defaults={"no memory": "random", "bound": "herding", "mnemonics": "mnemonics", "baseline": "herding"},
        used_by="memory",
    )
    network: str = setting(
        "auto",
        "network; auto is resnet32 for images of up to 64 pixels, resnet18 for larger ones",
        defaults={"small": "resnet32", "large": "resnet18"},
    )
    nb_protos: int | None = later(None, "exemplars kept per class (20), 0 for none", zero=True, used_by="memory")
    total_memory: int | None = later(None, "... or in total, shared equally by the classes seen", used_by="memory")
    exemplar_bytes: int | None = later(None, "... or per class as many as fit into so many bytes", used_by="memory")
    total_bytes: int | None = later(None, "... or in total, shared by the classes seen", used_by="memory", most=2**53)
    exemplar_format: str = later(
        "raw", "how exemplars are stored: raw, png, or webp:Q, jpeg:Q, avif:Q with a quality Q", used_by="memory"
    )
    recode: float | None = later(
        None,
        "probability with which an image of a new class is shown coded and decoded like the exemplars, from phase 1 on",
        defaults={"lossless": 0.0, "lossy": 1.0},
        zero=True,
        most=1,
        used_by="memory",
    )

    # model level (Eq. 5-6)
    epochs: int | None = setting(None, "epochs of each phase", defaults={"small": 160, "large": 90})
    later_epochs: int | None = later(None, "... or of each phase after phase 0 (--epochs)")
    lr_drops: str | None = setting(
        None,
        "shares of the epochs after which the learning rate drops tenfold",
        defaults={"small": "1/2,3/4", "large": "1/3,2/3"},
    )
    base_lr: float = setting(0.1, "learning rate of the model level", symbol="alpha_1")
    custom_momentum: float = setting(0.9, "momentum of the model level", zero=True)
    custom_weight_decay: float = setting(5e-4, "weight decay of the model level", zero=True)
    train_batch_size: int = setting(128, "training batch size of the model level")
    last_batch: str = setting(
        "join",
        "what becomes of the rest of an epoch: join = less than half a batch joins the batch before, as a small one "
        "spoils the statistics of BatchNorm; keep = it is a batch, as in the public codes; drop = it is left out",
        choices=("join", "keep", "drop"),
    )
    eval_batch_size: int = later(200, "batch size of evaluation and feature extraction", compared=False)
    T: float = later(2.0, "temperature of the distillation", symbol="T", used_by="lwf icarl bic")
    beta: float = later(0.25, "LwF and iCaRL: weight of the distillation", zero=True, used_by="lwf icarl")
    scale_distillation: bool | None = later(
        None,
        "weight of the distillation times 1 - (share of old images in an epoch / share of old classes)",
        defaults={"lossless": False, "lossy": True},
        used_by="lwf icarl lucir",
    )
    imprint: bool = later(
        False, "LwF and iCaRL: imprint new class weights and leave old ones fixed, as LUCIR does", used_by="lwf icarl"
    )
    lamda: float | None = later(
        None,
        "LUCIR: weight of the less-forget loss, before its factor sqrt(old / new classes)",
        defaults={"small": 5.0, "large": 10.0},
        zero=True,
        used_by="lucir",
    )
    K: int = later(2, "LUCIR: new classes that the margin ranking loss keeps away from each exemplar", used_by="lucir")
    dist: float = later(
        0.5, "LUCIR: margin of the margin ranking loss, a difference of cosines", zero=True, used_by="lucir"
    )
    lw_mr: float = later(1.0, "LUCIR: weight of the margin ranking loss", zero=True, used_by="lucir")

    # exemplar level (Eq. 7-10) and end-of-phase fine-tuning
    mnemonics_preset: str = later(
        "default",
        "where the settings below that are not given come from: default = those chosen in "
        "results/exemplar_study.md; paper = the paper's",
        choices=("default", "paper"),
        compared=False,  # what it became is
    )
    mnemonics_variant: str = later(
        "unroll",
        "what the exemplar gradient runs through: K steps on all weights, K steps on the classifier's weights, or "
        "the class means of the exemplars' features",
        choices=("unroll", "unroll-fc", "class-mean"),
        used_by="optimises adjusts",
    )
    mnemonics_base: str | None = later(
        None,
        "what the base level trains on: the new exemplars, or jointly with the old ones",
        choices=("new", "joint"),
        defaults={"default": "joint", "paper": "new"},
        used_by="optimises",
    )
    mnemonics_start: str | None = later(
        None,
        "which images new exemplars start from",
        choices=("random", "herding"),
        defaults={"default": "herding", "paper": "random"},
        used_by="optimises",
    )
    mnemonics_steps: int | None = by_preset(
        15, 50, "base-level steps that the exemplar gradient runs back through", symbol="K"
    )
    mnemonics_lr: float | None = by_preset(0.01, 0.01, "learning rate of the base level", symbol="alpha_2")
    mnemonics_batch_size: int | None = later(
        None,
        "batch size of base level and fine-tuning",
        defaults={"default": 128, "paper": 128},
        used_by="optimises adjusts finetunes",
    )
    mnemonics_val_batch_size: int | None = by_preset(512, 128, "validation images of each update of the exemplars")
    mnemonics_disturb: float | None = by_preset(
        0.2,
        0.0,
        "noise on the model that exemplars are optimised for, drawn anew for each update, so that they also suit what "
        "later phases make of it: its size relative to the weights",
        zero=True,
    )
    mnemonics_epochs: int | None = by_preset(20, 50, "epochs of the exemplar level, for new and for old exemplars each")
    mnemonics_epoch_unit: str | None = by_preset(
        "update",
        "pass",
        "what each of these is: an update of the exemplars, or one for each batch of a pass over the validation images",
        choices=("update", "pass"),
    )
    mnemonics_outer_lr: float | None = by_preset(
        0.01,
        0.01,
        "learning rate of the pixels in normalised image units, halved every fifth of --mnemonics_epochs",
        symbol="beta_1 = beta_2",
    )
    mnemonics_optimizer: str | None = by_preset("adam", "sgd", "optimiser of the pixels", choices=("adam", "sgd"))
    mnemonics_augment: bool | None = by_preset(True, False, "crop and mirror the batches of the base level at random")
    mnemonics_fall_back: bool | None = by_preset(
        True, False, "keep the images that the optimisation of new exemplars started from, where it did them no good"
    )
    mnemonics_tf32: bool = later(
        False,
        "on a GPU the gradients of the exemplar level, and nothing else, by products in TF32, which are less exact",
        used_by="optimises adjusts",
    )
    mnemonics_subsets: int = later(
        2, "subsets of the old exemplars, each adjusted on the others (at least 2)", used_by="adjusts"
    )
    no_adjust: bool | None = later(
        None,
        "leave old exemplars as they are: skip Eq. 10",
        defaults={"always adjusted": False, "default": True, "paper": False},
        compared=False,  # whether they are adjusted is
    )
    adjust_always: bool = later(
        False,
        "adjust old exemplars (Eq. 10) whatever --exemplars and the preset are: table 2 has such rows for all three",
        compared=False,
    )
    finetune_epochs: int | None = later(
        None,
        "epochs over the exemplars at the end of each phase from phase 1 on; 0 for none",
        defaults={"bound": 0, "no memory": 0, "baseline": 0, "default": 15, "paper": 50},
        zero=True,
    )
    finetune_augment: bool = later(
        False, "crop and mirror the batches of the fine-tuning at random", used_by="finetunes"
    )
    finetune_lr: float | None = later(
        None, "learning rate of the fine-tuning (that of the base level)", used_by="finetunes"
    )

    # running
    extend: str | None = running(
        None,
        "folder of a finished run that goes on with the classes that are new in the data, in one phase or as --nb_cl "
        "says; all other settings that change results are that run's",
    )
    ncm: bool = later(
        False, "also report nearest-class-mean accuracy, whose means read all training data", compared=False
    )
    random_seed: int = setting(
        1993, "seed of weights, batches, augmentation and exemplar choice", zero=True, most=2**63 - 1, compared=False
    )
    nb_runs: int = running(
        1, "repeat with seeds random_seed, random_seed + 1, ... and report mean and 95%% CI", most=1000
    )
    phase0_dir: str | None = running(
        None,
        "folder of phase-0 models: one that an equal run left there is used, otherwise it is trained and left there",
    )
    device: str = running("auto", "cpu, cuda, cuda:1, ... or auto: a GPU where there is one")
    gpu: int | None = running(None, "number of the GPU: another way to say --device cuda:N", zero=True)
    num_workers: int | None = running(
        None,
        "processes that decode images of files; 0: none but the main one (one per core, at most 16)",
        zero=True,
        most=512,
    )
    mnemonics_memory: int | None = running(
        None,
        "MiB that the exemplar gradient may take beyond what it needs, so that it goes once through each step and not "
        "twice; 0: none; the results are the same; CUDA graphs take none (a quarter of what is free)",
        zero=True,
    )
    cuda_graphs: bool = running(
        True, "capture the steps of the exemplar optimisation as CUDA graphs, on a GPU and with a single process"
    )
    amp: str = setting(
        "auto",
        "bf16 in the training of the model level, never in the exemplar level: on, off, or auto: on a GPU",
        choices=("auto", "on", "off"),
    )
    deterministic: bool = setting(
        False, "bit-for-bit repeatable on CUDA too, at some cost in speed (a CPU always is)", compared=False
    )
    checkpoint_minutes: float = running(10.0, "minutes between checkpoints; each phase ends with one, too", zero=True)
    out: str | None = running(None, "run folder (runs/<name made of the settings>)")
    resume: bool = running(True, "continue the run that the run folder holds; --no-resume starts it anew")


SETTINGS: dict[str, Setting] = {
    f.name: dataclasses.replace(f.metadata["setting"], default=f.default, annotation=f.type)
    for f in dataclasses.fields(ExperimentConfig)
}


def result_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that can change a number in results.json; a run is resumed only where all of them agree."""
    return {name: getattr(config, name) for name, known in SETTINGS.items() if known.affects_results}


def phase0_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that the training of phase 0 depends on."""
    return {name: value for name, value in result_settings(config).items() if SETTINGS[name].affects_phase0}
