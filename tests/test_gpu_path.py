"""What runs on a GPU, on a pretended one: numbers as on the CPU, and no waiting of the host where it counts."""

import itertools

import pretended_cuda
import pytest
import torch
from contexts import CPU, resolved
from image_folders import pictures
from test_fast_path import fast_losses

from mnemonics import algorithm
from mnemonics.baselines import BASELINES
from mnemonics.experiment.state import parse_args
from mnemonics.models import layers

pytestmark = pytest.mark.usefixtures("no_pictures")

FLAGS = (
    "--dataset digits --max_images_per_class 6 --network resnet8 --epochs 1 --train_batch_size 16 --nb_phases 1 "
    "--amp off --nb_protos 2 --mnemonics_epochs 2 --mnemonics_steps 2 --mnemonics_val_batch_size 32 --finetune_epochs 1"
).split()
CASES = {
    "lucir, adjusting": "--adjust_always --mnemonics_optimizer sgd",
    "icarl, all weights": "--baseline icarl --no-weight_transfer",
    "lwf, unroll-fc, not captured": "--baseline lwf --mnemonics_variant unroll-fc --no-cuda_graphs",
    "bic, class-mean": "--baseline bic --mnemonics_variant class-mean",
    "replay, coded": "--baseline replay --exemplar_format png --exemplars herding",
    "files": "--dataset folder --image_size 16 --num_workers 0",
}


def run(folder, flags, device):
    """The phases of a run, without what it took."""
    results, _ = algorithm.run(parse_args([*FLAGS, *flags, "--device", device, "--out", str(folder)]))
    return [{**phase, "seconds": 0, "peak_memory_bytes": 0} for phase in results["phases"]]


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_as_on_the_cpu(case, tmp_path):
    flags = CASES[case].split()
    if case == "files":
        flags += ["--data_dir", str(pictures(tmp_path / "images"))]
    expected = run(tmp_path / "cpu", flags, "cpu")
    with pretended_cuda.device() as gpu:
        assert run(tmp_path / "gpu", flags, "cuda") == expected
    assert gpu.replays > 0  # of training steps at least
    assert not [place for _, place in gpu.reads if place.startswith("exemplars/unroll")]


def test_an_update_reads_two_values_and_a_training_step_none(tmp_path):
    def reads(*flags):
        with pretended_cuda.device() as gpu:
            run(tmp_path / "_".join(flags), [*flags, "--nb_cl_fg", "9", "--finetune_epochs", "0"], "cuda")
        return sum(gpu.reads.values())

    few = reads("--mnemonics_epochs", "1", "--train_batch_size", "64")
    assert reads("--mnemonics_epochs", "3", "--train_batch_size", "16") - few <= 2 * 2 * 2  # in two phases


def test_a_run_is_taken_up_in_the_middle(tmp_path, monkeypatch):
    flags, written = ["--checkpoint_minutes", "0", "--adjust_always", "--nb_cl_fg", "9"], []
    expected = run(tmp_path / "whole", flags, "cpu")
    save = algorithm.save_partial

    class Killed(Exception):
        pass

    def save_and_die(*arguments):
        save(*arguments)
        written.append(1)
        if len(written) == 14:  # between two updates of the exemplars
            raise Killed

    with pretended_cuda.device():
        monkeypatch.setattr(algorithm, "save_partial", save_and_die)
        with pytest.raises(Killed):
            run(tmp_path / "run", flags, "cuda")
        assert run(tmp_path / "run", flags, "cuda") == expected


@pytest.mark.parametrize("weight_transfer", [False, True])
@pytest.mark.parametrize(("name", "phases"), [*itertools.product(BASELINES, [1, 2]), ("bic", 3), ("lucir", 3)])
def test_a_training_step_is_captured(name, phases, weight_transfer):
    config = resolved(baseline=name, amp="off", weight_transfer=weight_transfer)
    with pretended_cuda.device() as gpu:
        losses, _ = fast_losses(config, torch.device("cuda"), name, phases, steps=2)
    assert gpu.replays == 2
    assert torch.equal(losses, fast_losses(config, CPU, name, phases, steps=2)[0])


def test_statistics_of_a_batch_that_processes_share_are_captured(monkeypatch):
    monkeypatch.setattr(layers, "stacked", lambda own: own[None])
    x = torch.arange(24.0).view(2, 3, 2, 2)
    with pretended_cuda.device():
        there = x.to("cuda")
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            mean, _, count = layers.whole_batch_statistics(there)
        assert (count.item(), torch.equal(mean.cpu(), x.mean((0, 2, 3)))) == (8, True)


# the pretended device itself


def test_devices_do_not_mix():
    with pretended_cuda.device():
        there = torch.ones(3, device="cuda")
        assert (there.device, there.is_cuda) == (torch.device("cuda:0"), True)
        with pytest.raises(pretended_cuda.PretendedError, match="aten::add"):
            there + torch.ones(3)
        assert (there + 1).cpu().tolist() == [2, 2, 2]
    assert not torch.cuda.is_available()
    assert type(torch.tensor([1.0]) + 1) is torch.Tensor


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "by a mask"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "to the host"),
        (lambda x: torch.zeros(3).to(x.device), "to the device"),
        (lambda x: x.new_tensor([1.0]), "new_tensor"),
    ],
)
def test_what_the_host_waits_for_is_seen_and_not_captured(read, name):
    with pretended_cuda.device() as gpu:
        x = torch.ones(3, device="cuda")
        before = sum(gpu.reads.values())
        read(x)
        assert [what for what, _ in gpu.reads if name in what]
        assert sum(gpu.reads.values()) == before + 1
        graph = torch.cuda.graph(torch.cuda.CUDAGraph())
        with pytest.raises(pretended_cuda.PretendedError, match="in a capture"), graph:
            read(x)


def test_a_graph_replays_on_new_values():
    with pretended_cuda.device() as gpu:
        x, y = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y.add_(2 * x)
        x.fill_(5)
        y.zero_()
        graph.replay()
        graph.replay()
        assert y.cpu().tolist() == [20, 20]
        assert gpu.replays == 2
