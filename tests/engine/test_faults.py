"""Trust: killed, starved, fed rubbish, and nothing lost."""

import errno
import fcntl
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from faults import ROOT, Outcome, Server
from image_folders import pictures

from mnemonics import algorithm as experiment
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.experiment import run_folder as runfolder
from mnemonics.experiment import state as setup
from mnemonics.experiment.state import parse_args

KILLS, KILLS_IN_WRITES, KILLS_OF_THE_COMMAND = 12, 4, 1
CORRUPTIONS = 50  # half of them of a finished run folder
WRITE_FAULTS = 25
SEED = 1993
CPU = torch.device("cpu")
# about two seconds, in three phases, with two or more steps in every loop
UNBUDGETED = ("--dataset digits --max_images_per_class 8 --network resnet8 --nb_cl_fg 4 --nb_cl 3 --epochs 2 "
              "--train_batch_size 16 --mnemonics_epochs 3 --mnemonics_steps 1 --mnemonics_outer_lr 0.1 "
              "--mnemonics_batch_size 8 --finetune_epochs 3 --device cpu").split()  # fmt: skip
FLAGS = [*UNBUDGETED, "--nb_protos", "2"]
SHORT = ("--dataset digits --max_images_per_class 4 --network resnet8 --nb_cl_fg 5 --nb_cl 5 --epochs 1 "
         "--nb_protos 2 --mnemonics_epochs 2 --mnemonics_steps 1 --mnemonics_outer_lr 0.1 --finetune_epochs 2 "
         "--device cpu --checkpoint_minutes 0").split()  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with Server() as started:
        yield started


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run with FLAGS that nothing happened to: (`outcome_of` it, its seconds, the operations of its disk)."""
    folder, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    command = [*FLAGS, "--checkpoint_minutes", 0, "--out", folder / "run"]
    outcome = server.run(command, folder / "run", drawn={}, disk={})
    assert (outcome.status, outcome.err) == (0, "")
    return outcome_of(folder / "run"), time.monotonic() - start, outcome.operations


@pytest.fixture(scope="module")
def short(server, tmp_path_factory):
    """A run with SHORT that nothing happened to: (its folder, the operations of its disk)."""
    folder = tmp_path_factory.mktemp("short")
    outcome = server.run([*SHORT, "--out", folder / "run"], folder / "run", drawn={}, disk={})
    assert (outcome.status, outcome.err) == (0, "")
    return folder / "run", outcome.operations


@pytest.fixture(scope="module")
def interrupted(server, short, tmp_path_factory):
    """The folder of a run with SHORT that was killed in the last fine-tuning, two steps before phase 1 was saved."""
    folder, operations = tmp_path_factory.mktemp("interrupted"), short[1]
    saved = next(number for number, operation in enumerate(operations) if ".phase_1.pt" in operation)
    fault = {"number": saved - 12, "happens": "kill"}
    outcome = server.run([*SHORT, "--out", folder / "run"], folder / "run", drawn={}, disk=fault)
    assert outcome.status == -signal.SIGKILL
    assert resume_point(folder / "run")[0] == 1
    return folder / "run"


def numbers(folder):
    """What results.json has to say again bit for bit."""
    results = json.loads((folder / "results.json").read_bytes())
    del results["environment"], results["config"], results["sha256"]
    for phase in results["phases"]:
        del phase["seconds"], phase["peak_memory_bytes"]
        phase.get("phase0_model", {}).pop("train_seconds", None)
    return results


def outcome_of(folder, phases=None):
    """All that a run gives: the numbers, and the bytes of exemplars and weights of all phases, or of those given."""
    bytes_of = {}
    for path in sorted(folder.glob("phase_*.pt")) if phases is None else [folder / f"phase_{i}.pt" for i in phases]:
        state = checkpoint.load(path, CPU)
        tensors = {f"model.{name}": tensor for name, tensor in state["model"].items()}
        tensors |= {f"exemplars.{name}": tensor for name, tensor in state["exemplars"].items()}
        bytes_of[path.name] = {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}
    return numbers(folder), bytes_of


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def resume_point(folder):
    """Where a run would go on: (phases done, stages done in this one, loop, step); None: from the beginning."""
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        if (folder / name).exists():
            state = checkpoint.load(folder / name, CPU)
            partial = state["partial"] or {"done": {}, "loop": None, "step": 0}
            return len(state["phases"]), len(partial["done"]), partial["loop"], partial["step"]
    return None


def told_in_a_line(outcome: Outcome, *words, status=(1, 2)):
    """Whether a command ended as one that cannot go on has to."""
    line = outcome.err
    return (
        outcome.status in ((status,) if isinstance(status, int) else status)
        and line.count("\n") == 1
        and line.startswith("main.py: ")
        and all(str(word) in line for word in words)
    )


def test_killed_at_drawn_instants(server, whole, tmp_path):
    """Run after run, until all kills are spent; then the last one finishes undisturbed, whatever came before."""
    reference, length, operations = whole
    draw, points, runs = random.Random(SEED), set(), 0
    left = {"instant": KILLS, "write": KILLS_IN_WRITES}
    while any(left.values()):
        folder, last, longest, runs = tmp_path / f"run{runs}", "none", length / 6, runs + 1
        outcome = None
        while outcome is None or outcome.status:
            minutes = draw.choice(["0", "0", "0.001", "0.005"])
            command = [*FLAGS, "--checkpoint_minutes", minutes, "--out", folder]
            kind = draw.choices(list(left), list(left.values()))[0] if any(left.values()) else None
            fault = {"number": draw.randrange(len(operations) // 4), "happens": "kill"} if kind == "write" else {}
            child = server.start(command, tmp_path / "log", drawn={}, disk=fault)
            if kind == "instant":
                time.sleep(draw.uniform(0, longest))
                child.kill(signal.SIGKILL)  # without effect on a run that has ended
            outcome = child.wait()
            context = f"run {runs}, {kind} {left.get(kind)}, every {minutes} minutes, {fault}: {outcome}"
            assert outcome.err == "", context
            assert outcome.status in (0, -signal.SIGKILL), context
            if outcome.status:
                left[kind] -= 1
                point = resume_point(folder) if folder.exists() else None
                longest = 1.5 * longest if point == last else length / 6  # so that every run comes to its end
                last = point
                points.add(point)
        assert outcome_of(folder) == reference, context
        assert not leftovers(folder), context
    assert len(points) >= KILLS // 3, points


def damage(path, draw):
    """Damage a file. Returns what was done."""
    data = path.read_bytes()
    kind = draw.choice(["truncate", "flip a bit", "flip a byte", "empty", "delete", "append", "zeros"])
    place = draw.randrange(len(data) or 1)
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[:place])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "append":
        path.write_bytes(data + draw.randbytes(100))
    elif kind == "zeros":  # what a crash of the machine may leave
        path.write_bytes(data[:place] + bytes(len(data) - place))
    elif data:
        flipped = data[place] ^ (255 if kind == "flip a byte" else 1 << draw.randrange(8))
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
    return f"{path.name}: {kind} at {place} of {len(data)}"


@pytest.mark.parametrize("kind", ["finished", "interrupted"])
def test_damaged_files(server, short, interrupted, tmp_path, kind):
    """The right numbers, or a refusal in one line; never other numbers."""
    original, reference = {"finished": short[0], "interrupted": interrupted}[kind], outcome_of(short[0])
    draw = random.Random(SEED)
    for number in range(CORRUPTIONS // 2):
        folder = shutil.copytree(original, tmp_path / "run")
        files = sorted(path for path in folder.iterdir() if not path.name.endswith(".tmp"))
        checkpoints = [path for path in files if path.suffix == ".pt"]
        chosen = draw.sample(checkpoints if draw.random() < 0.6 else files, draw.choice([1, 1, 2]))
        done = [damage(path, draw) for path in chosen]
        outcome = server.run([*SHORT, "--out", folder], tmp_path / "log", drawn={})
        context = f"corruption {number}: {done}: {outcome}"
        if outcome.status == 0:
            assert outcome.err == "", context
            whole = [i for i in (0, 1) if readable(folder / f"phase_{i}.pt")]
            assert numbers(folder) == reference[0], context
            assert outcome_of(folder, whole)[1].items() <= reference[1].items(), context
            assert not leftovers(folder), context
        else:
            assert told_in_a_line(outcome, folder), context
        shutil.rmtree(folder)


def readable(path):
    try:
        checkpoint.load(path, CPU)
    except (OSError, ValueError):
        return False
    return True


METHODS = {  # of two phases, but for the first one
    "lucir": "--nb_protos 2 --adjust_always --train_batch_size 11 --mnemonics_base new --mnemonics_start random "
             "--no-mnemonics_augment",
    "bic": "--baseline bic --nb_cl 6 --adjust_always --total_memory 30 --mnemonics_variant unroll-fc "
           "--mnemonics_epoch_unit pass --mnemonics_val_batch_size 7",
    "icarl": "--method baseline --baseline icarl --nb_cl 6 --nb_protos 2 --adjust_always --ncm "
             "--mnemonics_optimizer sgd",
    "coded": "--nb_cl 6 --exemplar_format jpeg:60 --total_bytes 5000 --mnemonics_start random",
    "files": "--dataset folder --num_workers 0 --nb_cl_fg 2 --nb_cl 4 --nb_protos 2 --adjust_always --baseline lwf "
             "--mnemonics_variant class-mean --phase0_dir {tmp}/phase0",
}  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("method", METHODS)
def test_every_checkpoint_is_a_point_to_go_on_from(tmp_path, monkeypatch, method):
    """Stopped after each write of a checkpoint, and gone on from each."""
    images = pictures(tmp_path / "images", "abcdef", 5, size=8)
    flags = [*UNBUDGETED, "--checkpoint_minutes", "0", "--data_dir", str(images)]
    flags += METHODS[method].format(tmp=tmp_path).split()
    source = load_source(parse_args(flags))
    monkeypatch.setattr(setup, "load_source", lambda config: source)
    monkeypatch.setattr(runfolder, "environment", lambda device: {})
    experiment.run(parse_args([*flags, "--out", str(tmp_path / "whole")]))
    shutil.rmtree(tmp_path / "phase0", ignore_errors=True)

    class Stop(BaseException):
        pass

    def save_and_stop(*arguments):
        save_partial(*arguments)
        raise Stop

    points, save_partial = [], runfolder.save_partial
    monkeypatch.setattr(experiment, "save_partial", save_and_stop)
    for _ in range(200):
        try:
            experiment.run(parse_args([*flags, "--out", str(tmp_path / "parts")]))
            break
        except Stop:
            points.append(resume_point(tmp_path / "parts"))
    assert outcome_of(tmp_path / "parts") == outcome_of(tmp_path / "whole")
    assert len(set(points)) == len(points) >= 12, points
    last = "new exemplars" if method == "coded" else "adjusting old exemplars"
    assert {loop for _, _, loop, _ in points} >= {"training", last}


def test_what_cannot_be_written(server, short, tmp_path):
    """In attempt after attempt something fails, each time one operation later; then the run is finished."""
    reference, number = outcome_of(short[0]), 0
    kinds = [("ENOSPC", True), ("EIO", False), ("ENOSPC", False), ("EROFS", True), ("EDQUOT", True)]
    for run in itertools.count():
        folder, outcome = tmp_path / f"run{run}", None
        while outcome is None or outcome.status:
            code, lasting = kinds[number % len(kinds)]
            fault = {"number": number, "happens": code, "lasting": lasting} if number < WRITE_FAULTS else {}
            outcome, number = server.run([*SHORT, "--out", folder], tmp_path / "log", drawn={}, disk=fault), number + 1
            if fault and not (outcome.status == 0 and number > len(outcome.operations)):
                words = folder, os.strerror(getattr(errno, code))
                failed = outcome.operations[number - 1]
                context = f"{fault}, {failed}: {outcome.status} {outcome.err}"
                if outcome.status == 0:  # what nothing depends on: removing a temporary file that is not there
                    assert failed.startswith("unlink"), context
                elif ".lock" in failed or failed.startswith("mkdir"):
                    assert told_in_a_line(outcome, *words), context
                else:
                    assert told_in_a_line(outcome, *words, status=1), context
            else:
                assert (outcome.status, outcome.err) == (0, ""), f"{fault}: {outcome}"
        assert outcome_of(folder) == reference, fault
        assert not leftovers(folder), fault
        if number >= WRITE_FAULTS:
            break


def comes(path, child):
    """Wait until a run has made a file."""
    while not path.exists():
        assert not child.has_ended(), child.wait()
        time.sleep(0.002)


def test_the_folder_is_deleted_meanwhile(server, short, tmp_path):
    command = [*SHORT, "--out", tmp_path / "run"]
    child = server.start(command, tmp_path / "log", drawn={})
    comes(tmp_path / "run" / "checkpoint.pt", child)
    (tmp_path / "run").rename(tmp_path / "gone")
    outcome = child.wait()
    assert told_in_a_line(outcome, tmp_path / "run", os.strerror(errno.ENOENT), status=1), outcome
    assert server.run(command, tmp_path / "log", drawn={}).status == 0
    assert outcome_of(tmp_path / "run") == outcome_of(short[0])


PLACES = {  # function -> whether there is a checkpoint to go on from then
    "mnemonics.experiment.state:load_source": False,
    "mnemonics.algorithm:open_run": True,
    "mnemonics.training:sgd_step": True,
    "mnemonics.exemplars.meta_level:BaseLevel:gradient": True,
    "mnemonics.algorithm:evaluate": True,
    "mnemonics.algorithm:save_phase": True,
    "mnemonics.algorithm:finetune_on_exemplars": True,
}


@pytest.mark.parametrize("place", PLACES)
def test_signals(server, short, tmp_path, place):
    command = [*SHORT, "--out", tmp_path / "run"]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stopped = {"place": place, "number": number}
        outcome = server.run([*command, "--checkpoint_minutes", 10], tmp_path / "log", drawn={}, stopped=stopped)
        assert told_in_a_line(outcome, number.name, "the same command continues", status=status), outcome
    outcome = server.run(command, tmp_path / "log", drawn={})
    assert (outcome.status, outcome.err) == (0, "")
    assert ("resuming " in outcome.out) == PLACES[place], outcome.out
    assert outcome_of(tmp_path / "run") == outcome_of(short[0])


def test_a_second_signal_ends_a_run_at_once(server, short, tmp_path):
    """In the middle of writing a checkpoint, where the first one has to wait."""
    writes = [number for number, name in enumerate(short[1]) if name.startswith("write") and ".checkpoint.pt" in name]
    command, fault = [*SHORT, "--out", tmp_path / "run"], {"number": writes[3], "happens": "signal"}
    outcome = server.run(command, tmp_path / "log", drawn={}, disk=fault | {"lasting": True})
    assert (outcome.status, outcome.err) == (143, "")
    assert leftovers(tmp_path / "run")
    outcome = server.run(command, tmp_path / "log", drawn={}, disk=fault)
    assert told_in_a_line(outcome, "SIGTERM", status=143), outcome
    assert server.run(command, tmp_path / "log", drawn={}).status == 0
    assert outcome_of(tmp_path / "run") == outcome_of(short[0])
    assert not leftovers(tmp_path / "run")


def test_two_runs_in_one_folder(server, short, tmp_path):
    command = [*SHORT, "--out", tmp_path / "run"]
    first = server.start(command, tmp_path / "log", drawn={})
    comes(tmp_path / "run" / "config.json", first)
    second = server.run(command, tmp_path / "log2", drawn={})
    assert told_in_a_line(second, tmp_path / "run", f"process {first.pid}", status=2), second
    assert first.wait().status == 0
    assert outcome_of(tmp_path / "run") == outcome_of(short[0])


def test_the_folder_of_phase_0_models(server, short, tmp_path):
    """Its lock is waited for, until a signal comes; a damaged model is told of and trained anew."""
    models = tmp_path / "models"
    command = [*SHORT, "--phase0_dir", models, "--out"]
    assert server.run([*command, tmp_path / "first"], tmp_path / "log", drawn={}).status == 0
    model = next(models.glob("*.pt"))
    with model.with_suffix(".lock").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        waiting = server.start([*command, tmp_path / "second"], tmp_path / "log", drawn={})
        comes(tmp_path / "second" / "log.txt", waiting)
        time.sleep(0.2)
        waiting.kill(signal.SIGTERM)
        outcome = waiting.wait()
        assert told_in_a_line(outcome, "SIGTERM", status=143), outcome
    model.write_bytes(model.read_bytes()[:-1])
    outcome = server.run([*command, tmp_path / "second"], tmp_path / "log", drawn={})
    assert (outcome.status, outcome.err) == (0, "")
    assert f"{model}: damaged" in outcome.out
    assert "training that model anew" in outcome.out
    results = [outcome_of(folder) for folder in (tmp_path / "first", tmp_path / "second", short[0])]
    assert [phase.pop("phase0_model")["taken"] for run in results[:2] for phase in run[0]["phases"][:1]] == [0, 0]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("mnemonics.training:sgd_step", ("phase 0, training", "--train_batch_size")),
        ("mnemonics.exemplars.meta_level:BaseLevel:gradient", ("phase 0, new exemplars", "--mnemonics_batch_size")),
        ("mnemonics.algorithm:evaluate", ("phase 0, evaluation", "--eval_batch_size")),
        ("mnemonics.algorithm:finetune_on_exemplars", ("phase 1, fine-tuning", "--mnemonics_batch_size")),
    ],
)
def test_out_of_memory(server, tmp_path, place, words):
    command = [*SHORT, "--out", tmp_path / "run"]
    outcome = server.run(command, tmp_path / "log", drawn={}, out_of_memory={"place": place})
    assert told_in_a_line(outcome, *words, "not enough memory", status=1), outcome


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(server, whole, tmp_path):
    """In phase 1, which has two epochs of two steps; phase 0 has as many, and no fine-tuning."""
    command = [*FLAGS, "--checkpoint_minutes", 0, "--out", tmp_path / "run"]
    outcome = server.run(command, tmp_path / "log", drawn={}, diverging={"call": 6})
    assert told_in_a_line(outcome, "phase 1, epoch 1, step 1", "nan", "--base_lr", status=1), outcome
    assert resume_point(tmp_path / "run") == (1, 0, "training", 2)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt", CPU)["partial"]
    assert all(torch.isfinite(weights).all() for weights in state["model"].values())
    assert server.run(command, tmp_path / "log", drawn={}).status == 0
    assert outcome_of(tmp_path / "run") == whole[0]


def test_nothing_whole_is_left(server, interrupted, tmp_path):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    files = sorted(folder.glob("*.pt"))
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    outcome = server.run([*SHORT, "--out", folder], tmp_path / "log", drawn={})
    assert told_in_a_line(outcome, *(path.name for path in files), "--no-resume", status=2), outcome


def test_a_checkpoint_of_format_2(server, interrupted, tmp_path):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    state = checkpoint.load(folder / "checkpoint.pt", CPU)
    torch.save(state | {"format": 2}, folder / "checkpoint.pt")
    outcome = server.run([*SHORT, "--out", folder], tmp_path / "log", drawn={})
    assert told_in_a_line(outcome, "format 2", f"format {checkpoint.FORMAT}", "--no-resume", status=2), outcome


def test_kills_of_the_real_command(short, tmp_path):
    draw, folder = random.Random(SEED), tmp_path / "run"
    command = [sys.executable, "main.py", *SHORT, "--out", str(folder)]
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    for _ in range(KILLS_OF_THE_COMMAND):
        newest = folder / "checkpoint.pt"
        before = newest.stat().st_mtime_ns if newest.exists() else 0
        with subprocess.Popen(command, **options) as process:
            while process.poll() is None and not (newest.exists() and newest.stat().st_mtime_ns != before):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1))
            process.kill()
            assert process.wait() == -signal.SIGKILL
    assert subprocess.run(command, **options, timeout=300, check=False).returncode == 0
    assert outcome_of(folder) == outcome_of(short[0])
