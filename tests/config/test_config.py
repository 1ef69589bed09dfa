"""The command line: every flag has help, an effect and a check."""

import dataclasses

import pytest
from contexts import resolved

from mnemonics.__main__ import main
from mnemonics.config.command_line import build_parser
from mnemonics.config.fields import SETTINGS, ExperimentConfig
from mnemonics.config.presets import run_name, settled
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.state import CHOICES, parse_args
from mnemonics.reporting.paper import adjusted

DEVICES = ("abacus", "cuda:128", "cpu:300")  # that there never are


def test_every_field_is_a_flag_with_help_and_its_default():
    actions = {a.dest: a for a in build_parser(CHOICES)._actions}
    for name, known in SETTINGS.items():
        assert f"--{name}" in actions[name].option_strings
        assert len(actions[name].help) > 8
        assert actions[name].default == known.default
    assert parse_args([]) == ExperimentConfig()
    assert "--epochs" in build_parser(CHOICES).format_help()


def test_values_arrive_with_their_types():
    config = parse_args("--epochs 3 --base_lr 0.5 --nb_phases 10 --ncm --no-resume --total_memory 2000".split())
    assert (config.epochs, config.base_lr, config.nb_phases, config.ncm) == (3, 0.5, 10, True)
    assert (config.resume, config.total_memory, config.nb_protos) == (False, 2000, None)


PLAIN = {"weight_transfer": False, "finetune_epochs": 0}
PAPER = {"mnemonics_epochs": 50, "mnemonics_lr": 0.01, "mnemonics_outer_lr": 0.01, "mnemonics_optimizer": "sgd"}
PAPER |= {"mnemonics_epoch_unit": "pass", "finetune_epochs": 50, "finetune_lr": 0.01}
LARGE = {"image_size": 224, "network": "resnet18", "epochs": 90, "lr_drops": "1/3,2/3", "lamda": 10.0}
SETTLED = {  # flags -> what becomes of settings that were not given, or given by single flags beside a preset
    "": {"mnemonics_epoch_unit": "update", "nb_protos": 20, "network": "resnet32"},
    "--method mnemonics": {"exemplars": "mnemonics", "weight_transfer": True, "finetune_epochs": 15},
    "--method mnemonics --exemplars random --finetune_epochs 0": {"exemplars": "random", "finetune_epochs": 0},
    "--method baseline": {"exemplars": "herding"} | PLAIN,
    "--method baseline --weight_transfer": {"weight_transfer": True},
    "--no-weight_transfer": {"weight_transfer": False},
    "--mnemonics_preset paper": PAPER,
    "--mnemonics_preset paper --mnemonics_steps 7": {"mnemonics_steps": 7},
    "--mnemonics_preset paper --method baseline": {"finetune_epochs": 0},
    "--mnemonics_lr 0.07": {"finetune_lr": 0.07},  # which follows the base level
    "--mnemonics_lr 0.07 --finetune_lr 0.2": {"finetune_lr": 0.2},
    **{f"--baseline {bound}": PLAIN for bound in ("finetune", "joint")},  # nothing of the method unasked
    "--dataset imagenet_sub": LARGE,
    "--dataset folder --image_size 64": {"network": "resnet32", "epochs": 160, "lr_drops": "1/2,3/4", "lamda": 5.0},
}


@pytest.mark.parametrize("flags", SETTLED)
def test_what_settings_become(flags):
    assert SETTLED[flags].items() <= vars(resolved(parse_args(flags.split()))).items()


@pytest.mark.parametrize(
    ("flags", "adjusts"),
    [
        ("", False),
        ("--mnemonics_preset paper", True),
        ("--mnemonics_preset paper --no_adjust", False),
        ("--mnemonics_preset paper --exemplars random", False),
        ("--adjust_always", True),
        ("--exemplars herding --adjust_always", True),
    ],
)
def test_old_exemplars_are_adjusted_by_preset_unless_the_flags_say_otherwise(flags, adjusts):
    assert adjusted(dataclasses.asdict(resolved(parse_args(flags.split())))) == adjusts


def test_a_bound_cannot_be_tuned():
    with pytest.raises(UsageError, match="--finetune_epochs 3 and --baseline joint"):
        settled(parse_args("--baseline joint --finetune_epochs 3".split()), 100, None, is_bound=True)


def test_no_setting_is_left_open():
    settled = dataclasses.asdict(resolved(ExperimentConfig(nb_phases=5, nb_cl_fg=50, nb_cl=10)))
    assert {name for name, value in settled.items() if value is None} == {
        "class_order",
        "extend",
        "max_images_per_class",
        "val_share",
        "image_size",
        "later_epochs",  # as many as in phase 0
        "num_workers",
        *("total_memory", "exemplar_bytes", "total_bytes"),
        "mnemonics_memory",
        "gpu",
        "out",
        "phase0_dir",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--epochs 0", ["--epochs 0", "greater than 0"]),
        (f"--epochs {'9' * 400}", ["--epochs 999", "at most 2147483647"]),
        ("--order_seed 5000000000", ["--order_seed 5000000000", "at most 4294967295"]),
        ("--nb_runs 1000000000", ["--nb_runs 1000000000", "at most 1000"]),
        ("--num_workers 100000", ["--num_workers 100000", "at most 512"]),
        ("--image_size 1000000000 --dataset folder", ["--image_size 1000000000", "at most 8192"]),
        ("--lr_drops 3/4,1/2", ["--lr_drops 3/4,1/2", "1/2,3/4"]),
        ("--lr_drops 1/0", ["--lr_drops 1/0", "1/2,3/4"]),
        ("--lr_drops 1e-999999999", ["--lr_drops 1e-999999999", "1/2,3/4"]),
        ("--base_lr -1", ["--base_lr -1.0", "greater than 0"]),
        ("--base_lr nan", ["--base_lr nan"]),
        ("--base_lr inf", ["--base_lr inf", "at most"]),
        ("--beta -0.5", ["--beta -0.5", "at least 0"]),
        ("--total_memory 0", ["--total_memory 0"]),
        ("--class_order f --order_seed 1", ["--class_order f", "--order_seed 1", "one of the two"]),
        ("--nb_protos 20 --total_memory 2000", ["--nb_protos 20", "--total_memory 2000", "one of them"]),
        ("--mnemonics_subsets 1", ["--mnemonics_subsets 1", "at least 2", "--no_adjust"]),
        ("--no_adjust --adjust_always", ["--no_adjust", "--adjust_always", "one of the two"]),
        ("--gpu 1 --device cpu", ["--gpu 1", "--device cpu", "one of the two"]),
        *((f"--nb_protos 0 {flag}", ["--nb_protos 0: "]) for flag in ("--baseline icarl", "--finetune_epochs 2")),
        ("--dataset digits --nb_protos 0 --exemplars herding", ["--nb_protos 0: "]),
        ("--dataset digits --total_memory 9", ["--total_memory 9", "10 or more"]),
        ("--dataset digits --device cuda:63", ["--device cuda:63", "--device cpu works"]),
        *((f"--dataset digits --device {name}", [f"--device {name}", "not a device"]) for name in DEVICES),
        ("--dataset digits --gpu 63", ["--gpu 63", "--device cpu works"]),
        ("--dataset digits --gpu 256", ["--gpu 256", "CUDA devices"]),
        ("--dataset digits --out /dev/null/run", ["--out /dev/null/run", "cannot make"]),
        ("--dataset folder --data_dir ~nobody_is_called_so/x", ["--data_dir ~nobody", "train/<class>"]),
        (f"--dataset folder --data_dir {'x' * 300}", ["--data_dir xxx", "File name too long"]),
        ("--dataset folder --data_dir a\x1b[31m", [r"--data_dir a\x1b[31m: "]),
        ("--dataset folder --data_dir \udce4", [r"--data_dir \udce4: "]),
    ],
)
def test_a_mistake_is_told_in_a_line_that_names_the_flag(arguments, words, told):
    """By the real command."""
    error = told(main, *arguments.split(" "))
    assert error.startswith("main.py: ")
    assert all(word in error for word in words)


def test_abbreviated_flags_are_unknown(capsys):
    with pytest.raises(SystemExit) as status:
        parse_args(["--epoch", "3"])
    assert status.value.code == 2
    assert "--epoch" in capsys.readouterr().err


def test_run_names_tell_settings_apart():
    base = ExperimentConfig(nb_phases=5)
    assert run_name(base) == "cifar100_5phases_lucir_mnemonics"
    assert run_name(dataclasses.replace(base, epochs=2, method="baseline")) == "cifar100_5phases_lucir_baseline_epochs2"
    assert run_name(dataclasses.replace(base, nb_cl_fg=40)) == "cifar100_5phases_from40_lucir_mnemonics"
    assert run_name(dataclasses.replace(base, ncm=True)).endswith("_ncm")
    assert run_name(dataclasses.replace(base, weight_transfer=False)).endswith("_no_weight_transfer")
    assert run_name(dataclasses.replace(base, weight_transfer=True)).endswith("mnemonics_weight_transfer")
    birds = parse_args("--dataset folder --data_dir /data/birds --nb_phases 5 --epochs 3".split())
    assert run_name(birds) == "folder_birds_5phases_lucir_mnemonics_epochs3"
    same = dataclasses.replace(base, data_dir="/elsewhere", device="cpu", resume=False)
    assert run_name(same) == run_name(base)
