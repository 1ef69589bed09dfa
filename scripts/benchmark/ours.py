"""What benchmark.py times of this project, piece by piece as in plain.py: the one file that calls these pieces."""

import time

import torch
from timing import synchronize
from torch import nn

from mnemonics import algorithm
from mnemonics.baselines import BASELINES
from mnemonics.baselines.base import Baseline
from mnemonics.data.batches import LabelledImages, ResidentBatches, batch_sizes
from mnemonics.data.scenario import Scenario
from mnemonics.evaluation import class_means, features_of, predict
from mnemonics.exemplars.selection import herding_selection
from mnemonics.experiment.state import parse_args, set_up
from mnemonics.models import make_network
from mnemonics.training import sgd_step


def begun(flags: list[str], phase: int) -> tuple[Scenario, nn.Module, Baseline]:
    """A run with these flags of main.py where the training of `phase` begins; every phase before it was skipped."""
    scenario = set_up(parse_args(flags)).scenario
    phases, config = scenario.protocol.phases[: phase + 1], scenario.config
    model = make_network(config.network, phases[0].seen, scenario.device)
    baseline = BASELINES[config.baseline](config)
    for p in phases:
        baseline.begin_phase(model, p, scenario.train_data([p])[:256], scenario.prep)
    return scenario, model, baseline


class Ours:
    """The pieces of a run as this project does them."""

    def __init__(self, scenario: Scenario, model: nn.Module, baseline: Baseline):
        self.scenario, self.model, self.baseline = scenario, model, baseline
        self.config, self.prep, self.step = scenario.config, scenario.prep, None
        self.herding_seconds: list[float] = []  # of each `select`, without its features
        self.accuracies: list[list[float]] = []  # of `protocol`: CNN and NME, percent, after each phase

    def train_epoch(self, data: LabelledImages) -> None:
        """An epoch of the model level; the same `data` in each call."""
        batches = ResidentBatches(data, self.prep)
        if self.step is None:
            self.model.train()
            _, self.step = sgd_step(self.model, self.baseline, batches, self.config)
        draws = torch.Generator(self.scenario.device).manual_seed(0)
        sizes = batch_sizes(len(data), self.config.train_batch_size, "keep")  # as plain.py
        for batch in batches.epoch(sizes, draws):
            self.step(*batch)

    def select(self, data: LabelledImages, per_class: int) -> None:
        """Features of all of `data`, then herding."""
        features = features_of(self.model, data.images, self.prep, self.config.eval_batch_size)
        synchronize()
        start = time.perf_counter()
        herding_selection(features, data.labels, per_class)
        synchronize()
        self.herding_seconds.append(time.perf_counter() - start)

    def evaluate(self, exemplars: LabelledImages, test: LabelledImages) -> None:
        """CNN and NME predictions for `test`, the class means of `exemplars` included."""
        classes, size = int(exemplars.labels.max()) + 1, self.config.eval_batch_size
        means = class_means(self.model, exemplars, classes, self.prep, size)
        predict(self.model, test.images, {"nme": means}, self.prep, size)

    def protocol(self) -> None:
        """A whole run of main.py."""
        results, _ = algorithm.run(self.config)
        self.accuracies = [[phase["accuracy"]["cnn"], phase["accuracy"]["nme"]] for phase in results["phases"]]
