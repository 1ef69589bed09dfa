"""The command line, made from the fields of `ExperimentConfig`, and the checks of what a setting may be."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from mnemonics.config.fields import LARGEST, SETTINGS, ExperimentConfig, result_settings
from mnemonics.config.presets import BUDGETS
from mnemonics.config.setting import Setting
from mnemonics.engine.errors import UsageError

SHARE = re.compile(r"[0-9]{1,9}/[0-9]{1,9}|[0-9]?\.[0-9]{1,17}")  # no exponents: Fraction writes 1e-999999999 out
Choices = Mapping[str, Sequence[str]]  # setting -> its values, where other parts of the project know them


def build_parser(choices: Choices) -> argparse.ArgumentParser:
    """One flag per field of `ExperimentConfig`."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Mnemonics Training: class-incremental learning with optimised exemplars.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for name, known in SETTINGS.items():
        if known.type is bool:
            plain = known.default is False or name.startswith("no_")
            kind = {"action": "store_true" if plain else argparse.BooleanOptionalAction}
        else:
            values = tuple(choices.get(name, known.choices)) or None
            kind = {"type": known.type, "choices": values, "metavar": None if values else "X"}
        parser.add_argument(f"--{name}", default=known.default, help=help_of(known), **kind)
    return parser


def help_of(known: Setting) -> str:
    """The help, with the symbol in the paper and the defaults that depend on other settings."""
    symbol = f"{known.symbol} in the paper: " if known.symbol else ""
    defaults = ", ".join(f"{condition}: {value}" for condition, value in known.defaults.items())
    return f"{symbol}{known.help}" + (f" ({defaults})" if defaults else "")


def parse_args(arguments: Sequence[str] | None, choices: Choices) -> ExperimentConfig:
    """Parse and check the command line. With --extend, settings that can change results and are not given are None:
    they are those of the run that is extended.

    Raises:
        UsageError: for a value that makes no sense on its own (argparse itself exits with status 2 on unknown flags).
    """
    parser = build_parser(choices)
    config = ExperimentConfig(**vars(parser.parse_args(arguments)))
    check(config)
    if config.class_order is not None and config.order_seed != SETTINGS["order_seed"].default:
        raise UsageError(f"--class_order {config.class_order}, --order_seed {config.order_seed}: give one of the two")
    if config.extend is None:
        return config
    parser.set_defaults(**dict.fromkeys(result_settings(config)))
    return ExperimentConfig(**vars(parser.parse_args(arguments)))


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


def check(config: ExperimentConfig) -> None:
    """Reject values that make no sense whatever the data set is. Raises UsageError."""
    for name in SETTINGS:
        check_setting(name, getattr(config, name))
    check_lr_drops(config.lr_drops)
    if config.mnemonics_subsets < 2:
        raise UsageError(f"--mnemonics_subsets {config.mnemonics_subsets}: at least 2; --no_adjust skips the adjusting")
    if len(given := [f"--{name} {value}" for name in BUDGETS if (value := getattr(config, name)) is not None]) > 1:
        raise UsageError(f"{', '.join(given)}: give one of them")
    if config.nb_protos == 0 and (config.exemplars not in (None, "random") or config.finetune_epochs):
        raise UsageError("--nb_protos 0: there are no exemplars then; leave out --exemplars and --finetune_epochs")
    if config.nb_protos == 0 and config.baseline == "icarl":
        raise UsageError("--nb_protos 0: --baseline icarl needs exemplars; lwf is the same training without them")
    if config.recode and config.exemplar_format == "raw":
        raise UsageError(f"--recode {config.recode}: needs another --exemplar_format than raw")
    if config.extend is not None and config.nb_runs > 1:
        raise UsageError(f"--extend {config.extend}, --nb_runs {config.nb_runs}: a run is extended once, with its seed")
    if config.no_adjust and config.adjust_always:
        raise UsageError("--no_adjust and --adjust_always: give one of the two")
    if config.gpu is not None and config.device not in ("auto", "cuda", f"cuda:{config.gpu}"):
        raise UsageError(f"--gpu {config.gpu} contradicts --device {config.device}: give one of the two")


def check_setting(name: str, value: Any) -> None:
    """Raises UsageError for a value that the setting `name` cannot have, whatever the others are. A name that is no
    setting is that of another command's flag."""
    if isinstance(value, str):
        check_text(name, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(name, value, SETTINGS.get(name, Setting("")))


def check_text(name: str, value: str) -> None:
    """Raises UsageError for what no file system or device could be named, though a command line can hold it."""
    try:
        if value and "\0" not in value and value.encode():
            return
    except UnicodeEncodeError:
        raise UsageError(f"--{name} {value}: must be UTF-8; rename what is called so") from None
    raise UsageError(f"--{name} {value!r}: must be a text, without zero bytes; leave the flag out for its default")


def check_number(name: str, value: int | float, known: Setting) -> None:
    """Raises UsageError for numbers that are too small, too large or none."""
    most = known.most or (sys.float_info.max if isinstance(value, float) else LARGEST)
    if not value >= 0 or (value == 0 and not known.zero):  # not value < 0: nan is neither
        raise UsageError(f"--{name} {value}: must be {'at least 0' if known.zero else 'greater than 0'}")
    if value > most:
        raise UsageError(f"--{name} {value}: must be at most {most}")


def check_lr_drops(shares: str | None) -> None:
    """Raises UsageError unless `shares` is None or has the form 1/2,3/4."""
    if shares is None:
        return
    try:
        ascending = [Fraction(share if SHARE.fullmatch(share) else 0) for share in shares.split(",")]
    except ZeroDivisionError:
        ascending = [Fraction(0)]
    if not all(0 < share < 1 for share in ascending) or ascending != sorted(ascending):
        raise UsageError(f"--lr_drops {shares}: must be ascending shares between 0 and 1, as 1/2,3/4")
