"""The exemplar buffer in Avalanche, where that is installed: `bash scripts/test_adapters.sh`."""

import re
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

pytest.importorskip("avalanche")

from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset

from mnemonics import BilevelSettings
from mnemonics.adapters.avalanche import ExemplarBuffer

SETTINGS = BilevelSettings(steps=3, lr=0.1, epochs=3, outer_lr=0.05, batch_size=32, val_batch_size=128)


class Digits(TensorDataset):
    def __init__(self, images, labels):
        super().__init__(images, labels)
        self.targets = labels.tolist()


def digits():
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float() / 16
    return Digits(x[:1200], y[:1200]), Digits(x[1200:], y[1200:])


def trained(kind, experiences=2):
    """Accuracy on all ten digits after two experiences of five each, and the buffer."""
    torch.manual_seed(0)
    benchmark = nc_benchmark(*digits(), n_experiences=2, task_labels=False, seed=0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    buffer = ExemplarBuffer(50, kind, SETTINGS) if kind else None
    plugins = [ReplayPlugin(50, storage_policy=buffer)] if kind else []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    strategy = Naive(
        model=model, optimizer=optimizer, train_mb_size=32, train_epochs=5, plugins=plugins, evaluator=None
    )
    for experience in benchmark.train_stream[:experiences]:
        strategy.train(experience)
    x, y = digits()[1].tensors
    return (model(x).argmax(1) == y).float().mean().item(), buffer, benchmark


@pytest.mark.parametrize("kind", ["random", "herding", "mnemonics"])
def test_exemplars_keep_what_was_learned(kind):
    accuracy, buffer, _ = trained(kind)
    labels = torch.tensor(list(buffer.buffer.targets))
    assert torch.bincount(labels).tolist() == [5] * 10
    assert accuracy > trained(None)[0] + 0.15


def test_optimised_exemplars_start_from_herding_and_move():
    (_, real, benchmark), (_, optimised, _) = trained("herding", 1), trained("mnemonics", 1)
    originals = torch.stack([x for x, *_ in benchmark.train_stream[0].dataset])
    distance = torch.cdist(torch.stack([x for x, *_ in real.buffer]), originals).min(1).values
    assert distance.max() == 0
    moved = torch.stack([x for x, *_ in optimised.buffer])
    assert torch.cdist(moved, originals).min(1).values.min() > 0
    assert moved.min() >= originals.min()
    assert moved.max() <= originals.max()


def test_the_example_of_the_docs_runs():
    page = Path(__file__).parents[2] / "docs" / "own_training.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8").split("## In Avalanche")[1], re.DOTALL)
    exec(code, names := {})
    assert names["plugin"].storage_policy is names["buffer"]


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="random, herding, mnemonics would work"):
        ExemplarBuffer(10, "best")
