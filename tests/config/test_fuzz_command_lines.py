"""Random command lines: they are understood, or refused in one line that names a flag. Nothing else."""

import contextlib
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import pictures

from eval import download_checkpoints, evaluate
from mnemonics.config.command_line import repetitions
from mnemonics.config.fields import SETTINGS
from mnemonics.engine.errors import UsageError, command
from mnemonics.experiment import state as setup
from mnemonics.experiment.extend import extended
from mnemonics.experiment.state import CHOICES, parse_args
from scripts import run_exp

NUMBERS = (
    *"0 -0 -1 1 2 3 4 5 7 20 64 300 0.5 1e-3 -0.5 nan -nan inf -inf 1e999 1e-400 1e308 0x10 1_000 +3 3. ٣ ½".split(),
    *"127 128 256 32768 2147483647 2147483648 4294967295 4294967296 5000000000 9223372036854775808".split(),
    *"1000000000 -9223372036854775809 -- - None".split(),
    *("9" * 400, "9" * 5000, "", " ", "3 ", "\n3", "\0", "3\0"),
)
TEXTS = (
    *". .. ~ ~nobody_is_called_so/x /dev/null /dev/null/x a/b --epochs -1 %s {} $HOME ü 日本".split(),
    *("", " ", "x" * 300, "y/" * 3000, "\0", "a\0b", "line\nbreak", "\x1b[31mred", "\udce4", "\u202e"),
)
SHARES = ("1/2,3/4", "1/2", "3/4,1/2", "0/1", "1/0", ",", "1e-999999999", "0.5,.75", "½", "1/2\n", "9" * 5000, "-1/2")
DEVICES = "cpu auto cuda cuda:0 cuda:63 cuda:128 cuda:256 cuda:-1 cpu:0 cpu:300 meta mps".split()
NOWHERE = ("data", "", "\0", "nowhere", "/dev/null", "~nobody_is_called_so/x")


@st.composite
def flags(draw, places):
    """One flag of main.py with a value that is sensible most often; `places` are values of --data_dir."""
    name = draw(st.sampled_from(sorted(set(SETTINGS) - {"dataset"})))
    choices, kind = tuple(CHOICES.get(name, SETTINGS[name].choices)), SETTINGS[name].type
    if kind is bool:
        return [f"--{'no-' if draw(st.integers(0, 3)) == 0 else ''}{name}"]
    special = {"data_dir": places, "lr_drops": SHARES, "device": DEVICES}.get(name, choices)
    if special:
        values = st.sampled_from(special)
    else:
        values = st.sampled_from(TEXTS) if kind is str else st.integers(1, 12).map(str)
    rubbish = st.sampled_from(NUMBERS + TEXTS) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)
    return [f"--{name}", draw(values if draw(st.integers(0, 9)) else rubbish)]


def fuzz(examples):
    """The same examples each time, as many as there is time for."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def ended(call, arguments):
    """What becomes of a command line: an exit status, or the UsageError. What is printed is dropped."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        try:
            return call(arguments)
        except UsageError as error:
            return error
        except SystemExit as end:
            return end.code


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """Where relative paths lead to. Also, setting up a run chooses deterministic algorithms for the whole process."""
    with contextlib.chdir(tmp_path_factory.mktemp("here")):
        yield
    torch.set_deterministic_debug_mode("default")


def set_up(arguments):
    """What main.py does before it trains."""
    runs = repetitions(parse_args(arguments))
    for run in runs[:1] + runs[1:][-1:]:
        setup.set_up(run) if run.extend is None else extended(run)
    return "done"


@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_the_flags_of_a_run(dataset, tmp_path):
    pictures(tmp_path, [f"class {i}" for i in range(10)], 1, 1)
    places = NOWHERE if dataset == "digits" else (str(tmp_path), str(tmp_path), str(tmp_path / "train"), *TEXTS)
    ends = set()

    @fuzz(60)
    @given(st.lists(flags(places), max_size=5))
    def check(arguments):
        start = ["--dataset", dataset, "--data_dir", str(tmp_path), "--nb_protos", "1"]
        end = ended(set_up, [*start, *itertools.chain(*arguments)])
        if isinstance(end, UsageError):
            assert "--" in str(end)
            assert str(end).isprintable()
        ends.add("refused" if isinstance(end, UsageError) else end)

    check()
    assert ends == {"done", "refused", 2}  # else the command lines would not be worth much


@pytest.mark.parametrize("name", [name for name, known in SETTINGS.items() if known.type is str])
def test_texts_that_name_nothing(name, capsys):
    for value in ("", "\0", "\udce4"):
        with pytest.raises((UsageError, SystemExit)) as error:
            parse_args([f"--{name}", value])
        assert f"--{name}" in (capsys.readouterr().err if isinstance(error.value, SystemExit) else str(error.value))


# the other commands


@command("run_exp.py")
def prepare_runs(arguments):
    """What run_exp.py does before it starts runs."""
    options, flags = run_exp.parse_command_line(arguments)
    commands = run_exp.read_commands(options.commands) if options.commands else run_exp.paper_runs("table1")
    run_exp.make_runs(commands, flags, options.seeds, options.runs_dir)


def download(arguments):
    """From addresses at which there is nothing."""
    return download_checkpoints.main(["--url", "file:///nowhere", *arguments])


ADDRESSES = "http://[ http:// ftp://x file://%00 http://a\tb/ //x".split(" ")
OTHERS = {  # what is called, words of its command line, and command lines that ended in tracebacks
    "run_exp": (
        prepare_runs,
        ["--nb_phases 5", "--x 'y", *"--commands --seeds --jobs --minutes --table --runs_dir table1".split()],
        (["--commands", "\0"], ["\0"], ["--nb_runs", "1000000000", "--dataset", "digits"]),
    ),
    "evaluate": (
        evaluate.main,
        "--data_dir --device --eval_batch_size --ncm --out --nb_cl --nb_cl_fg --order_seed .".split(),
        (["x" * 5000], ["\0"], [".", "--eval_batch_size", "9" * 400]),
    ),
    "download_checkpoints": (
        download,
        ["--set", "cifar100", *(f"--url={address}" for address in ADDRESSES)],
        (["--url", "http://["], ["--out", "\0"]),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands(name):
    call, names, known = OTHERS[name]
    word = st.sampled_from((*names, *NUMBERS, *TEXTS, "--dataset", "digits", "--help")) | st.text(max_size=5)

    def check(arguments):
        assert ended(call, arguments) in (0, 2)

    for arguments in known:
        check(arguments)
    fuzz(40)(given(st.lists(word, max_size=6))(check))()
