"""scripts/run_exp.py: tiny real runs, its command line, and the lists of runs of the paper's tables."""

import dataclasses
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from image_folders import picture, pictures
from reports import make_results, written

from mnemonics.config.presets import LONGEST_NAME
from mnemonics.experiment.paper_runs import paper_runs
from mnemonics.experiment.sweep import child_environment, start_process
from mnemonics.reporting.paper import TABLES, load_paper, paper_rows
from scripts import run_exp

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--dataset digits --device cpu --network resnet8 --epochs 1 --nb_phases 1 --nb_cl_fg 5 --nb_protos 2 "
    "--mnemonics_val_batch_size 64 --mnemonics_epochs 1 --mnemonics_steps 1 --finetune_epochs 1"
).split()
LIST = """
# two that share their phase 0, one of them twice, and one that diverges
python main.py --baseline icarl --exemplars herding
python main.py --baseline bic \\
    --exemplars herding
python main.py --baseline icarl --exemplars herding  # again
python main.py --baseline icarl --exemplars herding --base_lr 1e20
"""


def start(*arguments):
    """The real script as a user starts it, on one core."""
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    command, env = [sys.executable, "scripts/run_exp.py", *map(str, arguments)], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)


def call(*arguments):
    """Returns (exit status, standard output, standard error)."""
    with start(*arguments) as process:
        out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def listed(folder, *baselines):
    """The flag for a file with a command for each baseline, herding exemplars."""
    lines = (f"python main.py --exemplars herding --baseline {name}" for name in baselines)
    return "--commands", written(folder / "list.txt", "\n".join(lines))


def runs_of(command_lines, *flags, seeds=(), runs_dir=Path("runs")):
    return run_exp.make_runs([line.split() for line in command_lines], list(flags), seeds, runs_dir)


@pytest.fixture(scope="module")
def first_call(tmp_path_factory):
    """LIST at tiny size: (folder of the runs, exit status, standard output)."""
    folder = tmp_path_factory.mktemp("sweep")
    file = written(folder / "list.txt", LIST)
    status, out, _ = call("--commands", file, "--runs_dir", folder, "--jobs", 2, "--seeds", 7, *TINY)
    return folder, status, out


def test_a_failing_run_is_reported_and_the_others_go_on(first_call):
    folder, status, out = first_call
    assert status == 1
    found = [json.loads(path.read_text()) for path in folder.glob("*/results.json")]
    assert sorted(results["config"]["baseline"] for results in found) == ["bic", "icarl"]
    assert {(len(r["phases"]), r["config"]["random_seed"], r["config"]["epochs"]) for r in found} == {(2, 7, 1)}
    models = [results["phases"][0]["phase0_model"] for results in found]
    assert len({model["key"] for model in models}) == 1
    assert sorted(model["taken"] for model in models) == [False, True]  # trained once, though side by side
    assert re.search(r"^\[ 1/3\] \d+:\d\d:\d\d digits_1phases_icarl_\S+: finished: phase 1 of 1, \d+\.\d+%", out, re.M)
    assert re.search(r"^\[ 3/3\] \S+ \S+base_lr1e\+20\S+: failed: .*loss is nan", out, re.M)
    assert re.search(r"^failed: \S+base_lr1e\+20\S+, status 1: see \S+\.log$", out, re.M)
    assert (folder / "summary.csv").exists()
    assert (folder / "summary.md").read_text() in out


def test_killed_and_called_again_it_skips_what_is_finished_and_waits_for_what_is_still_running(first_call):
    folder = first_call[0]
    (finished,) = folder.glob("*icarl*/results.json")
    before = finished.stat().st_mtime_ns
    arguments = (*listed(folder, "icarl", "lwf"), "--runs_dir", folder, "--seeds", 7, *TINY)
    with start(*arguments) as process:
        while "lwf" not in (line := process.stdout.readline()):
            assert line
        process.kill()  # main.py goes on
    assert process.returncode == -signal.SIGKILL
    status, out, error = call(*arguments)
    assert (status, error) == (0, "")
    assert "icarl" in next(line for line in out.splitlines() if "finished before: phase 1 of 1" in line)
    assert finished.stat().st_mtime_ns == before
    (lwf,) = folder.glob("*lwf*/results.json")
    assert [phase["phase"] for phase in json.loads(lwf.read_text())["phases"]] == [0, 1]


def test_a_run_that_another_process_has_is_left_alone(tmp_path):
    (run,) = run_exp.make_runs([TINY], [], [], tmp_path)
    with run.log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert start_process(run, {}) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path, number):
    with start(*listed(tmp_path, "icarl", "lwf"), "--runs_dir", tmp_path, *TINY) as process:
        assert "2 runs" in process.stdout.readline()
        assert "started" in process.stdout.readline()
        process.send_signal(number)
        out, error = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert number.name in error
    assert "icarl" in next(line for line in out.splitlines() if line.endswith(": stopped"))
    assert "2 of 2 runs left; the same command continues" in out
    (path,) = tmp_path.glob("*.log")
    with path.open() as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while a process works on the run


@pytest.mark.parametrize(("minutes", "logs"), [(0, 0), (0.001, 1)])
def test_out_of_time(tmp_path, monkeypatch, capfd, minutes, logs):
    monkeypatch.chdir(ROOT)  # `main` goes there; afterwards the tests are back where they were
    folder = run_exp.make_run(["--exemplars", "herding", "--baseline", "lwf", *TINY], tmp_path).folder
    written(folder / "results.json", make_results(finished=1))  # no run to summarise
    options = ["--minutes", minutes, "--runs_dir", tmp_path, *listed(tmp_path, "lwf", "bic")]
    assert run_exp.main([*map(str, options), *TINY]) == 0
    out = capfd.readouterr().out
    assert "2 of 2 runs left" in out
    assert len(list(tmp_path.glob("*.log"))) == logs == out.count(": stopped\n")


LISTS = [  # with a mistake, and what the message must name
    ("python main.py --epoch 3", ["python main.py --epoch 3", "unrecognized arguments"]),
    ("python main.py --dataset nothing", ["--dataset nothing", "invalid choice"]),
    ("python main.py\npython main.py --epochs 0", ["main.py --epochs 0", "greater than 0"]),
    ("python main.py --nb_phases 7", ["main.py --nb_phases 7", "50 classes left"]),
    ("python main.py --out x", ["main.py --out x", "--runs_dir"]),
    ("python main.py --nb_runs 2", ["main.py --nb_runs 2", "--seeds"]),
    ("python main.py --help", ["main.py --help", "no experiment"]),
    ("python other.py --epochs 3", ["python other.py --epochs 3", "not of the form"]),
    ("python main.py --device 'cpu", ["list.txt", "quotation"]),
    ("# nothing\n\n", ["list.txt", "are expected"]),
    ("python main.py\npython main.py --device cpu", ["--device cpu", "same run folder"]),
]
COMMAND_LINES = [
    ("--commands nowhere.txt", ["nowhere.txt: cannot be read"]),
    ("list.txt", ["main.py", "list.txt"]),
    ("--jobs 0", ["--jobs 0", "greater than 0"]),
    ("--minutes -1", ["--minutes -1", "at least 0"]),
    ("--runs_dir \0", ["--runs_dir"]),
    ("--runs_dir /dev/null/runs", ["--runs_dir: /dev/null/runs: Not a directory"]),
]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        *((text, "--commands list.txt", words) for text, words in LISTS),
        *(("", line, words) for line, words in COMMAND_LINES),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_starts(text, line, words, tmp_path, told, monkeypatch):
    (tmp_path / "list.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_exp, "ROOT", tmp_path)
    error = told(run_exp.main, *shlex.split(line))
    assert all(word in error for word in words), error
    assert len(list(tmp_path.iterdir())) == 1


def test_each_seed_goes_through_all_commands_before_the_next():
    found = [run.config for run in runs_of(["--baseline lucir", "--baseline icarl"], "--epochs", "2", seeds=(1, 2))]
    expected = [(seed, name) for seed in (1, 2) for name in ("lucir", "icarl")]
    assert [(config.random_seed, config.baseline) for config in found] == expected


def test_folders_are_named_as_by_main_and_hold_the_shared_models_unless_the_command_names_others():
    lines = ["--dataset digits --nb_cl 1", "--nb_cl_fg 40 --nb_cl 10 --phase0_dir elsewhere"]
    names = ["digits_5phases_lucir_mnemonics_epochs2", "cifar100_6phases_from40_lucir_mnemonics_epochs2"]
    first, second = runs_of(lines, "--epochs", "2")
    assert first.arguments[-4:] == ("--phase0_dir", "runs/phase0", "--out", f"runs/{names[0]}")
    assert second.arguments[-4:] == ("--epochs", "2", "--out", f"runs/{names[1]}")


def test_names_are_never_too_long():
    names = "mnemonics_lr finetune_lr custom_momentum T beta lw_mr lamda base_lr".split()
    every = " ".join(f"--{name} 0.5" for name in names)
    every += " --mnemonics_outer_lr 0.5 --custom_weight_decay 0.5 --mnemonics_epochs 3 --mnemonics_steps 3"
    runs = runs_of([every, every + " --dist 0.25"])
    assert [len(run.folder.name) for run in runs] == [LONGEST_NAME] * 2


def test_threads_are_shared_out_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in child_environment(1)
    assert child_environment(10**6)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert child_environment(10**6)["OMP_NUM_THREADS"] == "3"


def test_results_of_other_data_do_not_count_as_finished(tmp_path):
    flags = "--dataset folder --nb_cl_fg 2 --nb_cl 1 --num_workers 0 --image_size 16 --data_dir".split()
    places = [pictures(tmp_path / name / "pets", ("ape", "bee", "cow")) for name in ("a", "b")]
    picture(places[0] / "train" / "ape" / "0.png", (20, 20), seed=5)
    a, b = (run_exp.make_run([*flags, str(place)], tmp_path) for place in places)
    assert (a.folder, a.fingerprint == b.fingerprint) == (b.folder, False)
    results = {"config": dataclasses.asdict(a.config), "phases": [{}] * 2, "data": {"fingerprint": a.fingerprint}}
    written(a.folder / "results.json", results)
    assert (a.finished(), b.finished()) == (True, False)
    assert not dataclasses.replace(b, fingerprint=a.fingerprint).finished()  # elsewhere: main.py looks at it
    assert not dataclasses.replace(a, fingerprint=b.fingerprint).finished()  # other images in the same place


def test_only_whole_results_of_the_same_settings_count_as_finished(tmp_path):
    (run,) = runs_of([""], runs_dir=tmp_path)
    run.folder.mkdir()
    ours, other = (dataclasses.asdict(dataclasses.replace(run.config, epochs=epochs)) for epochs in (160, 2))
    contents = [({"config": ours, "phases": [{}] * 6}, True), ({"config": other, "phases": [{}] * 6}, False)]
    for content, expected in [*contents, ({}, False), ({"phases": [], "headline": "nme"}, False), ("{", False)]:
        (run.folder / "results.json").write_text(content if content == "{" else json.dumps(content))
        assert (run.progress(), run.finished()) == ("", expected)


@pytest.mark.parametrize(("table", "count"), [("table1", 24), ("table2", 18), ("figure4", 18), ("all", 43)])
def test_the_lists_cover_every_number_of_the_paper_on_cifar100(table, count):
    configs = [run.config for run in run_exp.make_runs(paper_runs(table), [], [], Path())]
    mine = [(paper_rows(dataclasses.asdict(config)), str(config.nb_phases)) for config in configs]
    assert len(mine) == count
    for part in ("table1", "table2") if table == "all" else (table,):
        paper = load_paper()[TABLES[part]]
        rows = {row: data["cifar100"] for row, data in paper.get("average_accuracy", {}).items()}
        expected = {(row, n) for row, data in rows.items() for n in data}
        expected |= {(row, n) for n, curves in paper.get("cifar100", {}).items() for row in curves}
        assert {(rows[part], n) for rows, n in mine if part in rows} == expected


@pytest.mark.parametrize(
    ("script", "table", "dataset"),
    [
        ("table1_cifar100", "table1", "cifar100"),
        ("table1_imagenet_subset", "table1", "imagenet_sub"),
        ("table1_imagenet", "table1", "imagenet"),
        ("table2_cifar100", "table2", "cifar100"),
        ("figure4", "figure4", "cifar100"),
        ("cifar100", "all", "cifar100"),
    ],
)
def test_the_scripts_name_their_table_and_data_set(script, table, dataset):
    path = ROOT / "scripts" / f"reproduce_{script}.sh"
    assert os.access(path, os.X_OK)
    (words,) = re.findall(r'run_exp\.py (.*) "\$@"$', path.read_text(), re.M)
    options, flags = run_exp.parse_command_line(words.split())
    assert (options.table, run_exp.parse_main(flags).dataset) == (table, dataset)
