"""Several processes under torchrun, with Gloo on the CPU: the numbers of one process, and one run folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_cases
import pytest
import torch
from image_folders import picture

from mnemonics import algorithm as experiment
from mnemonics.engine import files as checkpoint
from mnemonics.experiment.state import parse_args

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RUN = (
    "--dataset digits --nb_cl_fg 6 --nb_phases 2 --network resnet8 --epochs 1 --base_lr 0.001 --nb_protos 5 "
    "--exemplars herding --adjust_always "
    "--mnemonics_val_batch_size 64 --mnemonics_epochs 2 --mnemonics_steps 2 --finetune_epochs 2"
).split()  # so low a rate that the rounding errors of BatchNorm do not grow enough to change what herding chooses
NAMES = list(distributed_cases.cases(Path(), Path()))


def torchrun(*arguments, check=True):
    """Two processes; returns the finished torchrun."""
    process = subprocess.run([*TORCHRUN, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, capture_output=True,
                             text=True, timeout=300)  # fmt: skip
    assert process.returncode == 0 or not check, process.stdout + process.stderr
    return process


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def png_folder(tmp_path_factory):
    """train/ and val/ of two classes with five images each."""
    folder = tmp_path_factory.mktemp("png")
    for number, path in enumerate(f"{s}/{c}/{i}.png" for s in ("train", "val") for c in "ab" for i in range(5)):
        picture(folder / path, (24, 20 + number), number)
    return folder


@pytest.fixture(scope="module")
def two_processes(png_folder, tmp_path_factory):
    """What the cases gave on each of two processes."""
    folder = tmp_path_factory.mktemp("cases")
    torchrun("tests/distributed_cases.py", "cases", png_folder, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    experiment.run(parse_args([*RUN, "--out", str(folder)]))
    return folder


@pytest.fixture(scope="module")
def two_run(tmp_path_factory):
    """A run of main.py on two processes that stops if they drift apart, and what it printed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    flags = ("--out", folder, "--phase0_dir", folder.parent / "phase0")
    return folder, torchrun("tests/distributed_cases.py", "main", *RUN, *flags)


@pytest.mark.parametrize("name", NAMES)
def test_one_and_two_processes_compute_the_same(name, two_processes, png_folder, tmp_path):
    reference = distributed_cases.cases(png_folder, tmp_path)[name]()
    near = dict.fromkeys(("rtol", "atol"), 1e-5 if "float32" in name else 1e-9)
    for result in (rank[name] for rank in two_processes):
        assert result.keys() == reference.keys()
        for key, value in reference.items():
            if "float32" in name and "losses" not in key:
                continue  # rounding errors flip ReLUs, which shows in single gradients
            assert result[key].dtype == value.dtype
            torch.testing.assert_close(result[key], value, **near, msg=lambda m, k=key: f"{k}: {m}")


def test_both_processes_have_the_same_bits(two_processes):
    for name, result in two_processes[0].items():
        for key, value in result.items():
            assert torch.equal(value, two_processes[1][name][key]), (name, key)


def test_a_run_on_two_processes_has_the_results_of_one(one_run, two_run):
    one, two = results(one_run), results(two_run[0])
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    first = [checkpoint.load(folder / "phase_0.pt", torch.device("cpu")) for folder in (one_run, two_run[0])]
    assert torch.equal(first[0]["exemplars"]["images"], first[1]["exemplars"]["images"])
    assert first[0]["model"].keys() == first[1]["model"].keys()
    for a, b in zip(one["phases"], two["phases"], strict=True):
        assert a.keys() | {"phase0_model"} == b.keys() | {"phase0_model"}
        assert a["train_images"] == b["train_images"]
        for name, percent in a["accuracy"].items():
            assert percent == pytest.approx(b["accuracy"][name], abs=6)
    assert one["phases"][0]["accuracy"]["nme"] > 50


def test_only_rank_0_writes_and_prints(one_run, two_run):
    folder, process = two_run
    names = [sorted(p.name for p in run.iterdir() if "events" not in p.name) for run in (one_run, folder)]
    assert names[0] == names[1]
    assert len(list(folder.glob("events.*"))) == 1
    log = (folder / "log.txt").read_text()
    assert log.count("2 processes (gloo): batches of 128 in all, 64 each; learning rate as configured") == 1
    assert log.count("phase 0: 6 classes") == process.stdout.count("phase 0: 6 classes") == 1
    assert process.stdout.count("average accuracy %") == 1
    assert "Warning" not in process.stderr
    assert len(list((folder.parent / "phase0").glob("*.pt"))) == 1


def test_two_processes_resume_a_run_of_one_and_one_that_of_two_of_which_one_was_killed(one_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(one_run / "config.json", folder)
    phase_0 = checkpoint.load(one_run / "phase_0.pt", torch.device("cpu"))
    checkpoint.save(folder / "checkpoint.pt", phase_0 | {"phases": results(one_run)["phases"][:1]})
    with open(tmp_path / "output", "w") as output:
        job = subprocess.Popen([*TORCHRUN, "main.py", *RUN, "--out", str(folder)], cwd=ROOT, env=ENVIRONMENT,
                               stdout=output, stderr=subprocess.STDOUT)  # fmt: skip
        deadline = time.monotonic() + 200
        while not (folder / "phase_1.pt").exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process_of_rank(job.pid, 1), signal.SIGKILL)
        assert job.wait(timeout=60) != 0
    assert not (folder / "phase_2.pt").exists()
    experiment.run(parse_args([*RUN, "--out", str(folder)]))
    log = (folder / "log.txt").read_text()
    assert [log.count(f"resuming after phase {phase}") for phase in (0, 1)] == [1, 1]
    last, reference = (results(run)["phases"][-1]["accuracy"] for run in (folder, one_run))
    assert last == pytest.approx(reference, abs=6)


def process_of_rank(torchrun_pid, rank):
    """The process that torchrun gave this rank."""
    children = Path(f"/proc/{torchrun_pid}/task/{torchrun_pid}/children").read_text().split()
    (pid,) = (c for c in children if f"RANK={rank}".encode() in Path(f"/proc/{c}/environ").read_bytes().split(b"\0"))
    return int(pid)


@pytest.mark.parametrize(
    ("flags", "words"), [("--nb_cl_fg 3 --nb_phases 5", "7 classes left"), ("--out /dev/null/x", "cannot make")]
)  # one that all processes run into, one that only rank 0 does
def test_a_users_mistake_is_told_in_one_line(flags, words, tmp_path):
    process = torchrun("main.py", "--dataset", "digits", "--out", tmp_path / "run", *flags.split(), check=False)
    lines = [line for line in process.stderr.splitlines() if line.startswith("main.py: ")]
    assert len(lines) == 1, process.stderr
    assert words in lines[0]
    assert process.stderr.count("Traceback") == 1  # torchrun's own
    assert "exitcode  : 2 " in process.stderr
    assert process.returncode != 0
