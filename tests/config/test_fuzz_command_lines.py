"""Random command lines: they are understood, or refused in one line that names a flag. Nothing else."""

import contextlib
import io
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_files import picture

from eval import convert_legacy, download_checkpoints, evaluate
from mnemonics.config.fields import FIELDS, parse_args, repetitions
from mnemonics.engine.errors import UsageError
from mnemonics.experiment import state as setup
from scripts import run_exp

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = (
    *("0 -0 -1 1 2 3 4 5 7 20 64 300 0.5 1e-3 -0.5 nan -nan inf -inf 1e999 1e-400 1e308 0x10 1_000 +3 3. ٣ ½".split()),
    *("127 128 256 32768 2147483647 2147483648 4294967295 4294967296 5000000000 9223372036854775808".split()),
    *(
        "1000000000",
        "-9223372036854775809",
        "9" * 400,
        "9" * 5000,
        "",
        " ",
        "3 ",
        "\n3",
        "\0",
        "3\0",
        "--",
        "-",
        "None",
    ),
)
TEXTS = (
    *("", " ", ".", "..", "~", "~nobody_is_called_so/x", "/dev/null", "/dev/null/x", "a/b", "x" * 300, "y/" * 3000),
    *(
        "\0",
        "a\0b",
        "line\nbreak",
        "\x1b[31mred",
        "\udce4",
        "ü",
        "日本",
        "\u202e",
        "--epochs",
        "-1",
        "%s",
        "{}",
        "$HOME",
    ),
)
SHARES = ("1/2,3/4", "1/2", "3/4,1/2", "0/1", "1/0", ",", "1e-999999999", "0.5,.75", "½", "1/2\n", "9" * 5000, "-1/2")
DEVICES = "cpu auto cuda cuda:0 cuda:63 cuda:128 cuda:256 cuda:-1 cpu:0 cpu:300 meta mps".split()
NOWHERE = ("data", "", "\0", "nowhere", "/dev/null", "~nobody_is_called_so/x")


@st.composite
def flags(draw, places):
    """One flag of main.py with a value that is sensible most often; `places` are values of --data_dir."""
    name = draw(st.sampled_from(sorted(set(FIELDS) - {"dataset"})))
    metadata, kind = FIELDS[name].metadata, FIELDS[name].type
    if kind in (bool, bool | None):
        return [f"--{'no-' if draw(st.integers(0, 3)) == 0 else ''}{name}"]
    if metadata["choices"]:
        values = st.sampled_from(metadata["choices"])
    elif name == "data_dir":
        values = st.sampled_from(places)
    else:
        values = {"lr_drops": st.sampled_from(SHARES), "device": st.sampled_from(DEVICES)}.get(
            name, st.sampled_from(TEXTS) if kind in (str, str | None) else st.integers(1, 12).map(str)
        )
    rubbish = st.sampled_from(NUMBERS + TEXTS) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)
    return [f"--{name}", draw(values if draw(st.integers(0, 9)) else rubbish)]


def fuzz(examples):
    """The same examples each time, as many as there is time for."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def outcome(*parts):
    """What becomes of a command line: "done", "refused" or "argparse"."""
    said, message, status = io.StringIO(), "--", 2
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            runs = repetitions(parse_args(list(itertools.chain(*parts))))
            for run in runs[:1] + runs[1:][-1:]:
                setup.set_up(run)
            end = "done"
        except UsageError as error:
            end, message = "refused", str(error)
        except SystemExit as exit:
            end, status = "argparse", exit.code
    assert status == 2
    assert "--" in message
    assert message.isprintable()
    return end


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """Where relative paths lead to. Also, setting up a run chooses deterministic algorithms for the whole process."""
    with contextlib.chdir(tmp_path_factory.mktemp("here")):
        yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Ten classes with an image each, for training and for test."""
    root = tmp_path_factory.mktemp("tree")
    for split in ("train", "val"):
        for i in range(10):
            picture(root / split / f"class {i}" / "1.png", (16, 16), i)
    return root


@fuzz(250)
@given(st.lists(flags(NOWHERE), max_size=5))
def test_on_digits(arguments):
    outcome(["--dataset", "digits"], *arguments)


def test_on_a_folder(tree):
    ends = set()

    @fuzz(200)
    @given(st.lists(flags((str(tree), str(tree), str(tree / "train"), *TEXTS)), max_size=5))
    def check(arguments):
        ends.add(outcome(["--dataset", "folder", "--data_dir", str(tree), "--nb_protos", "1"], *arguments))

    check()
    assert ends == {"done", "refused", "argparse"}  # else the command lines would not be worth much


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--order_seed 5000000000", ["--order_seed 5000000000", "at most 4294967295"]),
        ("--nb_runs 1000000000", ["--nb_runs 1000000000", "at most 1000"]),
        ("--num_workers 100000", ["--num_workers 100000", "at most 512"]),
        ("--image_size 1000000000 --dataset folder", ["--image_size 1000000000", "at most 8192"]),
        (f"--epochs {'9' * 400}", ["--epochs 999", "at most 2147483647"]),
        ("--base_lr inf", ["--base_lr inf", "at most"]),
        ("--lr_drops 1e-999999999", ["--lr_drops 1e-999999999", "1/2,3/4"]),
        ("--dataset digits --device cuda:128", ["--device cuda:128", "not a device"]),
        ("--dataset digits --device cpu:300", ["--device cpu:300", "not a device"]),
        ("--dataset digits --gpu 256", ["--gpu 256", "CUDA devices"]),
        ("--dataset folder --data_dir ~nobody_is_called_so/x", ["--data_dir ~nobody", "train/<class>"]),
        (f"--dataset folder --data_dir {'x' * 300}", ["--data_dir xxx", "File name too long"]),
    ],
)
def test_values_that_ended_in_tracebacks(arguments, words):
    with pytest.raises(UsageError) as error:
        setup.set_up(repetitions(parse_args(arguments.split()))[0])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.type in (str, str | None)])
@pytest.mark.parametrize("value", ["", "\0", "\udce4"])
def test_texts_that_name_nothing(name, value, capsys):
    with pytest.raises((UsageError, SystemExit)) as error:
        parse_args([f"--{name}", value])
    assert f"--{name}" in (capsys.readouterr().err if isinstance(error.value, SystemExit) else str(error.value))


def test_a_line_break_in_a_value_stays_in_the_line():
    with pytest.raises(UsageError) as error:
        setup.set_up(parse_args(["--dataset", "folder", "--data_dir", "a\nb\x1b[31m"]))
    assert str(error.value).startswith(r"--data_dir a\nb\x1b[31m: ")


def test_the_real_command(tree):
    """A handful at a time, as each of them loads PyTorch."""
    mistakes = (
        ["--dataset", "digits", "--order_seed", "5000000000"],
        ["--dataset", "folder", "--data_dir", f"{tree}/\x1b[31m\n"],
        [b"--dataset", b"folder", b"--data_dir", b"\xe4"],
    )
    command = [sys.executable, str(ROOT / "main.py")]
    runs = [subprocess.Popen([*command, *m], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for m in mistakes]
    for arguments, run in zip(mistakes, runs, strict=True):
        said, error = run.communicate(timeout=300)
        assert (run.returncode, said) == (2, b""), arguments
        flag = arguments[-2].decode() if isinstance(arguments[-2], bytes) else arguments[-2]
        assert flag in error.decode().splitlines()[-1]
        assert b"Traceback" not in error


# the other commands


def ended(call, *arguments):
    """The exit status of a command, given as a function; what it says is dropped."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            return call(*arguments)
        except SystemExit as end:
            return end.code


def words(*names):
    """Command lines of these flags, values and rubbish."""
    value = st.sampled_from((*names, *NUMBERS, *TEXTS, "--dataset", "digits", "--help")) | st.text(max_size=5)
    return st.lists(value, max_size=6)


def refused_or_help(status, arguments):
    return status == 2 or (status == 0 and "--help" in arguments)


def prepare_runs(arguments):
    """What run_exp.py does before it starts runs."""
    try:
        file, options, flags = run_exp.parse_command_line(arguments)
        run_exp.make_runs(run_exp.chosen_commands(file, options.grid), flags, options.seeds, options.runs_dir)
    except UsageError:
        return 2
    return 0


@fuzz(150)
@given(words("--grid", "--seeds", "--jobs", "--minutes", "--table", "--runs_dir", "table1", "--nb_phases 5", "--x 'y"))
@example(["--grid", '--nb_phases "5'])
@example(["\0"])
@example(["--grid", "--nb_runs 1000000000", "--dataset", "digits"])
def test_run_exp(arguments):
    if arguments[:1] != ["-"]:  # standard input
        assert ended(prepare_runs, arguments) in (0, 2)


@pytest.mark.parametrize("runs_dir", ["\0", "/dev/null/x"])
def test_run_exp_where_nothing_can_be_written(runs_dir, capsys):
    assert run_exp.main(["--grid", "--nb_phases 5", "--dataset", "digits", "--runs_dir", runs_dir]) == 2
    assert "--runs_dir" in capsys.readouterr().err


EVALUATE = "--data_dir --device --eval_batch_size --ncm --out --nb_cl --nb_cl_fg --order_seed .".split()


@fuzz(150)
@given(words(*EVALUATE))
@example(["x" * 5000])
@example(["\0"])
@example([".", "--eval_batch_size", "9" * 400])
def test_evaluate(arguments):
    assert refused_or_help(ended(evaluate.main, arguments), arguments)


@fuzz(100)
@given(words("--dataset", "--nb_cl", "--nb_cl_fg", "--order_seed", "no/such/folder"))
@example(["x" * 5000, "y"])
@example(["\0", "y"])
def test_convert_legacy(arguments):
    assert refused_or_help(ended(convert_legacy.main, arguments), arguments)


ADDRESSES = "file:///nowhere http://[ http:// http://localhost/ü ftp://x file://%00 http://a\tb/ //x".split(" ")


@fuzz(100)
@given(words("--set", "--sha256", "cifar100", "a" * 64), st.sampled_from(ADDRESSES))
@example([], "http://localhost/ü")
@example(["--sha256", ""], "file:///nowhere")
@example(["--out", "\0"], "file:///nowhere")
def test_download_checkpoints(arguments, address):
    """Only addresses at which nothing is: nothing is downloaded here."""
    status = ended(download_checkpoints.main, [*arguments, "--url", address])
    assert refused_or_help(status, arguments)
