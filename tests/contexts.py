"""The context of a phase, for tests of its parts."""

import dataclasses

import torch

from mnemonics.baselines import BASELINES
from mnemonics.config import presets
from mnemonics.config.fields import SETTINGS, ExperimentConfig
from mnemonics.data.scenario import PhaseContext, Scenario
from mnemonics.engine.progress import Progress
from mnemonics.exemplars.base_level import BilevelSettings
from mnemonics.protocol import class_order, make_protocol

CPU = torch.device("cpu")
PROTOCOL = make_protocol(class_order(10, 1993), [5, *[1] * 5])


def resolved(config=None, **settings):
    """All settings: those given, the others by default."""
    config = dataclasses.replace(config or ExperimentConfig(), **settings)
    return presets.resolved(config, BASELINES[config.baseline].is_bound())


def context(prep, config=None, phase=0, progress=None):
    """A phase of ten classes, five of them new in phase 0 and one in each later one, without a data set."""
    scenario = Scenario(resolved(config), None, PROTOCOL, prep, CPU)
    return PhaseContext(scenario, PROTOCOL.phases[phase], progress or Progress())


def with_settings(settings: BilevelSettings, **others):
    """The command line that has these settings of the exemplar level, without augmentation."""
    values = {f"mnemonics_{name}": value for name, value in vars(settings).items() if f"mnemonics_{name}" in SETTINGS}
    return ExperimentConfig(**{"mnemonics_augment": False} | values | others)
