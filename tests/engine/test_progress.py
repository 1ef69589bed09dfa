"""Loops that can be interrupted between any two steps, and what is seen of them."""

import functools
import itertools
import sys

import pytest
import torch
from torch import nn

from mnemonics.engine import log as run_log
from mnemonics.engine import progress as progress_of_loops
from mnemonics.engine.errors import Interrupted
from mnemonics.engine.progress import Loop, Progress, Signals

SIGTERM = 15


class Log:
    def __init__(self):
        self.lines, self.scalars = [], []

    def line(self, text):
        self.lines.append(text)

    def scalar(self, *point):
        self.scalars.append(point)


def counted(progress, stop_at=None):
    """A loop of six random additions to a weight; asked to stop before the step `stop_at` has ended."""
    model, sums = nn.Linear(1, 1, bias=False), [torch.zeros(2)]
    nn.init.zeros_(model.weight)
    progress.watch(model)
    generator = torch.Generator().manual_seed(3)
    for step in progress.steps(Loop("loop", 6), sums=sums, generator=generator):
        if step == stop_at:
            progress.signals.received = SIGTERM
        with torch.no_grad():
            model.weight += torch.rand((), generator=generator)
        sums[0] += torch.rand(2, generator=generator)
        progress.report(sums[0].sum())
    return model.weight.item(), sums[0].tolist()


@pytest.mark.parametrize("stop_at", range(5))
def test_an_interrupted_loop_ends_as_one_that_was_not(stop_at):
    expected = counted(Progress())
    stored = []
    with pytest.raises(Interrupted) as interruption:
        counted(Progress(write=stored.append), stop_at)
    assert interruption.value.status == 143
    assert (stored[0]["loop"], stored[0]["step"]) == ("loop", stop_at + 1)
    assert counted(Progress(stored=stored[0])) == expected


def test_checkpoints_come_when_it_is_time():
    stored = []
    counted(Progress(write=stored.append, minutes=0.0))
    assert [partial["step"] for partial in stored] == [1, 2, 3, 4, 5]
    stored.clear()
    counted(Progress(write=stored.append, minutes=60.0))
    assert stored == []


def test_a_finished_stage_is_not_worked_through_again():
    stored, calls = [], []
    progress = Progress(write=stored.append, minutes=0.0)
    progress.watch(nn.Linear(1, 1))
    progress.seconds = {"train": 5.0}
    assert progress.once("stage", lambda: {"answer": 42}) == {"answer": 42}
    again = Progress(stored=stored[-1])
    assert again.once("stage", lambda: calls.append(1)) == {"answer": 42}
    assert calls == []
    assert again.seconds == {"train": 5.0}


def test_what_changes_nothing_is_broken_off_and_begun_again():
    signals, stored = Signals(), []
    progress = Progress(write=stored.append, signals=signals)
    progress.watch(nn.Linear(1, 1))

    def evaluation():
        signals.handle(SIGTERM, None)
        raise AssertionError("not broken off")

    with signals.deferred(), pytest.raises(Interrupted):
        progress.once("evaluation", evaluation, pure=True)
    assert stored[0]["done"] == {}
    assert stored[0]["loop"] is None


def test_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(run_log, "LINE_SECONDS", 1e-9)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    log = Log()
    progress = Progress(log=log, phase=2)
    for _ in progress.steps(Loop("training", 4, per_epoch=2, images=8)):
        progress.report(torch.tensor(0.5))
    assert [line.split(", loss")[0] for line in log.lines] == [
        *["phase 2, training: epoch 1 of 2"] * 2, *["phase 2, training: epoch 2 of 2"] * 2]  # fmt: skip
    assert "loss 0.500" in log.lines[0]
    assert "images/s" in log.lines[0]
    assert log.lines[-1].endswith(" left")
    assert log.scalars == []


def test_steps_that_become_far_slower_are_told_of_once(monkeypatch):
    """Ten a second for 90 seconds, the next ones half as fast, the last ones a fifth."""
    seconds = itertools.accumulate([0.0, *[0.1] * 900, *[0.2] * 1000, *[0.5] * 500])
    monkeypatch.setattr(progress_of_loops, "Pace", functools.partial(run_log.Pace, lambda: next(seconds)))
    log = Log()
    assert len(list(Progress(log=log, phase=2).steps(Loop("training", 2400)))) == 2400
    assert [line for line in log.lines if "busy" in line] == [
        "phase 2, training: 2 steps/s, after 10: is this machine busy?"
    ]


def test_validation_losses_of_the_exemplars_are_a_curve_over_all_phases():
    log = Log()
    progress = Progress(log=log, phase=2)
    for step in progress.steps(Loop("new exemplars", 6, per_epoch=2, curve="validation_loss")):
        progress.report(torch.tensor(step / 2))
    assert log.scalars == [("validation_loss", 0.5, 6), ("validation_loss", 1.5, 7), ("validation_loss", 2.5, 8)]
