"""scripts/run_exp.py and the reproduce_*.sh that call it: tiny real runs, and its parts."""

import dataclasses
import fcntl
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnemonics.engine.errors import UsageError
from mnemonics.experiment.sweep import (
    Sweep,
    child_environment,
    finished,
    last_line,
    may_start,
    progress,
    run_elsewhere,
    start_process,
)
from mnemonics.reporting.paper import paper_rows

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("run_exp", ROOT / "scripts" / "run_exp.py")
run_exp = importlib.util.module_from_spec(spec)
sys.modules["run_exp"] = run_exp  # where its dataclass looks itself up
spec.loader.exec_module(run_exp)

TINY = ("--dataset digits --device cpu --network resnet8 --epochs 1 --nb_phases 1 --nb_cl_fg 5 --nb_protos 2 "
        "--mnemonics_val_batch_size 64 "
        "--mnemonics_epochs 1 --mnemonics_steps 1 --finetune_epochs 1").split()  # fmt: skip
LIST = """
# one that works, twice, and one that diverges
python main.py --baseline icarl --exemplars herding
python main.py --baseline icarl --exemplars herding  # again
python main.py --baseline icarl --exemplars herding --base_lr 1e20
"""


def start(*arguments):
    """The real script as a user starts it, on one core."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "scripts/run_exp.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, **pipes)


def call(*arguments, text=""):
    """Returns (exit status, standard output, standard error)."""
    with start(*arguments) as process:
        out, error = process.communicate(text, timeout=300)
    return process.returncode, out, error


def runs_of(command_lines, *flags, seeds=(), runs_dir=Path("runs")):
    return run_exp.make_runs([line.split() for line in command_lines], list(flags), seeds, runs_dir)


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def first_call(tmp_path_factory):
    """LIST at tiny size: (folder of the runs, exit status, standard output)."""
    folder = tmp_path_factory.mktemp("sweep")
    status, out, _ = call("-", "--runs_dir", folder, "--jobs", 2, "--seeds", 7, *TINY, text=LIST)
    return folder, status, out


def test_a_failing_run_is_reported_and_the_others_go_on(first_call):
    folder, status, out = first_call
    assert status == 1
    (good,) = folder.glob("*/results.json")
    assert len(results(good.parent)["phases"]) == 2
    assert results(good.parent)["config"]["random_seed"] == 7
    assert results(good.parent)["config"]["epochs"] == 1
    assert re.search(r"^\[ 1/2\] \d\d:\d\d:\d\d digits_1phases_icarl_\S+: finished: phase 1 of 1, \d+\.\d+%", out, re.M)
    assert re.search(r"^\[ 2/2\] \S+ \S+base_lr1e\+20\S+: failed: .*loss is nan", out, re.M)
    assert re.search(r"^failed: \S+base_lr1e\+20\S+, status 1: see \S+\.log$", out, re.M)
    assert good.parent.with_name(f"{good.parent.name}.log").stat().st_size > 0


def test_the_summary_is_printed_and_written(first_call):
    folder, _, out = first_call
    assert (folder / "summary.csv").exists()
    assert (folder / "summary.md").read_text() in out


def test_killed_and_called_again_it_skips_what_is_finished_and_finishes_the_rest(first_call):
    """The rest shares the phase-0 model of what is finished."""
    folder = first_call[0]
    (good,) = folder.glob("*icarl*/results.json")
    before = good.stat().st_mtime_ns
    arguments = ("--grid", "--baseline icarl lwf", "--exemplars herding", "--runs_dir", folder, "--seeds", 7, *TINY)
    with start(*arguments) as process:
        while "lwf" not in (line := process.stdout.readline()):
            assert line
        process.kill()  # main.py goes on
    assert process.returncode == -signal.SIGKILL
    status, out, error = call(*arguments)  # waits for it
    assert (status, error) == (0, "")
    assert "icarl" in next(line for line in out.splitlines() if "finished before: phase 1 of 1" in line)
    assert good.stat().st_mtime_ns == before
    (lwf,) = folder.glob("*lwf*/results.json")
    assert [phase["phase"] for phase in results(lwf.parent)["phases"]] == [0, 1]
    assert results(lwf.parent)["phases"][0]["phase0_model"]["taken"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path, number):
    with start("--grid", "--baseline icarl lwf", "--runs_dir", tmp_path, *TINY) as process:
        assert "2 runs" in process.stdout.readline()
        assert "started" in process.stdout.readline()
        process.send_signal(number)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert f"{number.name}: 2 of 2 runs left; the same command continues" in out
    (run, _) = runs_of(["--baseline icarl", "--baseline lwf"], *TINY, runs_dir=tmp_path)
    assert run.log.exists()
    assert not run_elsewhere(run)


def test_no_time_starts_nothing(tmp_path):
    status, out, _ = call("--minutes", 0, "--runs_dir", tmp_path, *TINY)
    assert status == 0
    assert "out of time: 2 of 2 runs left" in out  # --nb_phases 1 makes two of the six
    assert list(tmp_path.iterdir()) == []


def test_out_of_time_ends_what_is_running(tmp_path, monkeypatch, capsys):
    def start_process(run, env):
        sweep.began -= 3600  # an hour passes
        return subprocess.Popen(["sleep", "600"])

    monkeypatch.setattr("mnemonics.experiment.sweep.start_process", start_process)
    sweep = Sweep(runs_of(["--nb_phases 5", "--nb_phases 10"], runs_dir=tmp_path), jobs=1)
    assert sweep.go(1800) == 0
    assert (len(sweep.pending), sweep.running) == (2, {})
    out = capsys.readouterr().out
    assert "5phases_lucir_mnemonics: stopped" in out
    assert "10phases" not in out


def test_a_run_that_another_process_has_in_hand_is_not_started(tmp_path):
    (run,) = runs_of([""], runs_dir=tmp_path)
    assert not run_elsewhere(run)
    with open(run.log, "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        holder = subprocess.Popen(["sleep", "600"], stdout=log)
    try:
        assert run_elsewhere(run)
        assert start_process(run, dict(os.environ)) is None
    finally:
        holder.kill()
        holder.wait()
    assert not run_elsewhere(run)


MISTAKES = {
    "flag": ("python main.py --epoch 3", ["python main.py --epoch 3", "unrecognized arguments"]),
    "value": ("python main.py\npython main.py --epochs 0", ["main.py --epochs 0", "greater than 0"]),
    "phases": ("python main.py --nb_phases 7", ["main.py --nb_phases 7", "50 classes left"]),
    "out": ("python main.py --out x", ["main.py --out x", "--runs_dir"]),
    "help": ("python main.py --help", ["main.py --help", "no experiment"]),
    "line": ("python other.py --epochs 3", ["python other.py --epochs 3", "not of the form"]),
    "quote": ("python main.py --device 'cpu", ["--device 'cpu", "quotation"]),
    "empty": ("# nothing\n\n", ["no command"]),
    "folder": ("python main.py\npython main.py --device cpu", ["--device cpu", "same run folder"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_command_ends_in_one_line_before_anything_starts(mistake, tmp_path, capsys, monkeypatch):
    text, words = MISTAKES[mistake]
    (tmp_path / "list.txt").write_text(text)
    monkeypatch.chdir(ROOT)
    assert run_exp.main([str(tmp_path / "list.txt"), "--runs_dir", str(tmp_path / "runs")]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert all(word in output.err for word in words), output.err
    assert output.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--jobs", "2", "list.txt"], "list.txt"),
        (["list.txt", "--grid", "--epochs 1 2"], "one of the two"),
        (["--grid", "epochs 1"], "must be a flag"),
        (["--seeds", "1", "--nb_runs", "2"], "one of the two"),
        (["--jobs", "0"], "at least 1"),
        (["--minutes", "-1"], "at least 0"),
        (["--runs_dir", "/dev/null/runs"], "cannot be made"),
    ],
)
def test_a_mistake_on_the_command_line_has_status_2(arguments, words):
    status, out, error = call(*arguments)
    assert (status, out) == (2, "")
    assert words in error
    assert "Traceback" not in error


def test_the_standard_set():
    runs = runs_of([" ".join(command) for command in run_exp.STANDARD])
    expected = [f"cifar100_{n}phases_lucir_{m}" for n in (5, 10, 25) for m in ("baseline", "mnemonics")]
    assert [run.folder.name for run in runs] == expected
    assert runs[0].arguments[-4:] == ("--phase0_dir", "runs/phase0", "--out", f"runs/{expected[0]}")


def test_a_grid_is_the_product():
    commands = run_exp.grid_commands(["--baseline lucir icarl", "--nb_phases 5 10"])
    expected = [f"--baseline {b} --nb_phases {n}" for b in ("lucir", "icarl") for n in (5, 10)]
    assert [" ".join(command) for command in commands] == expected


def test_one_run_per_command_and_seed():
    runs = runs_of(["--nb_phases 5", "--nb_phases 10"], seeds=[1, 2])
    assert [(run.config.random_seed, run.config.nb_phases) for run in runs] == [(1, 5), (1, 10), (2, 5), (2, 10)]
    repeated = runs_of(["--nb_runs 2", "--baseline icarl"])
    assert [(run.config.random_seed, run.config.baseline) for run in repeated] == [
        (1993, "lucir"), (1993, "icarl"), (1994, "lucir")]  # fmt: skip
    assert {run.config.nb_runs for run in repeated} == {1}


def test_names_are_those_of_main_and_never_too_long():
    lines = ["--dataset digits --nb_cl 1", "--nb_cl_fg 40 --nb_cl 10", f"--nb_phases 5 {' '.join(TINY[2:10])}"]
    names = [run.folder.name for run in runs_of(lines, "--epochs", "2")]
    assert names[:2] == ["digits_5phases_lucir_mnemonics_epochs2", "cifar100_6phases_from40_lucir_mnemonics_epochs2"]
    every = "--mnemonics_lr 0.5 --finetune_lr 0.5 --custom_momentum 0.5 --custom_weight_decay 0.5 --T 3 --beta 0.5 "
    every += "--mnemonics_outer_lr 0.5 --mnemonics_epochs 3 --mnemonics_steps 3 --mnemonics_batch_size 4 --lw_mr 0.5"
    long, other = runs_of([every, every + " --dist 0.25"])
    assert len(long.folder.name) == len(other.folder.name) == run_exp.LONGEST_NAME
    assert long.folder != other.folder


def test_phase0_dir_of_a_command_is_kept():
    (run,) = runs_of(["--phase0_dir elsewhere"])
    assert run.arguments.count("--phase0_dir") == 1


def test_runs_that_need_the_same_phase_0_model_wait_for_it():
    first, second, third, other = runs_of(
        ["--method baseline", "--method mnemonics", "--nb_phases 10", "--random_seed 7"]
    )
    done = set()

    def start_now(pending, running, free):
        return may_start(pending, running, free, lambda run: run not in done)

    assert start_now([first, second, third, other], [], 3) == [first, other]
    assert start_now([second, third], [first, other], 1) == []
    done.add(first)
    assert start_now([second, third], [first, other], 2) == [second, third][:1]
    done.add(second)
    assert start_now([third], [first, second, other], 1) == [third]
    done.add(third)  # such as a run that is taken up again
    assert start_now([second, third], [runs_of([""])[0]], 1) == [second]
    assert start_now([first, second, other], [], 0) == []


def test_groups_differ_in_all_that_phase_0_depends_on():
    (run,) = runs_of([""])
    names = "dataset order_seed nb_cl_fg max_images_per_class network random_seed amp deterministic epochs base_lr"
    for name in f"{names} custom_momentum custom_weight_decay train_batch_size".split():
        config = dataclasses.replace(run.config, **{name: "another"})
        assert dataclasses.replace(run, config=config).group != run.group, name
    later = (
        "--baseline bic --method baseline --nb_phases 25 --nb_protos 5 --beta 1 --mnemonics_steps 3 --no_adjust --ncm"
    )
    assert runs_of([later])[0].group == run.group


def test_threads_are_shared_out_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in child_environment(1)
    assert child_environment(10**6)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert child_environment(10**6)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("text", ["", "{", "{}", '{"phases": []}', '{"phases": [], "headline": "nme"}'])
def test_half_written_results_are_no_progress(tmp_path, text):
    (run,) = runs_of([""], runs_dir=tmp_path)
    run.folder.mkdir()
    (run.folder / "results.json").write_text(text)
    assert progress(run) == (0, "")
    assert not finished(run)


def test_a_run_with_other_settings_does_not_count_as_finished(tmp_path):
    (run,) = runs_of([""], runs_dir=tmp_path)
    run.folder.mkdir()
    for epochs, expected in ((160, True), (2, False)):
        config = dataclasses.asdict(dataclasses.replace(run.config, epochs=epochs))
        (run.folder / "results.json").write_text(json.dumps({"config": config, "phases": [{}] * 6}))
        assert finished(run) == expected


def test_the_last_line_of_a_log_is_that_of_the_reason(tmp_path):
    (tmp_path / "log").write_bytes(b"start\nepoch 1\rwhat went wrong\r\n\n")
    assert last_line(tmp_path / "log") == "what went wrong"


def reproduced(script):
    """(--table, settled configurations) of a reproduce_*.sh."""
    text = (ROOT / "scripts" / script).read_text()
    ((line, commands),) = re.findall(
        r'^exec "\$PY" scripts/run_exp.py (.*) "\$@" <<\'END\'\n(.*)^END$', text, re.M | re.S
    )
    arguments = [" ".join(command) for command in run_exp.read_commands(commands)]
    assert len(runs_of(arguments)) == len(arguments)
    file, options, flags = run_exp.parse_command_line(line.split())
    assert (file, flags) == ("-", [])
    return options.table, [run.config for run in runs_of(arguments)]


@pytest.mark.parametrize(
    ("script", "key"),
    [
        ("reproduce_table1_cifar100.sh", "table1"),
        ("reproduce_table1_imagenet_subset.sh", "table1"),
        ("reproduce_table1_imagenet.sh", "table1"),
        ("reproduce_table2_cifar100.sh", "table2_lucir_with_weight_transfer"),
        ("reproduce_figure4.sh", "figure4_accuracy_per_phase"),
    ],
)
def test_the_scripts_cover_every_number_of_their_table(script, key):
    paper = json.loads((ROOT / "mnemonics" / "reporting" / "paper_results.json").read_text())[key]
    if key.startswith("figure4"):
        expected = {(curve, n) for n, curves in paper["cifar100"].items() for curve in curves}
    else:
        rows = paper["average_accuracy"].items()
        expected = {(row, n) for row, data in rows for n in data["cifar100"]}
    table, configs = reproduced(script)
    assert key.startswith(table)
    mine = [(paper_rows(dataclasses.asdict(config))[table], str(config.nb_phases)) for config in configs]
    assert sorted(mine) == sorted(expected)


def test_both_tables_in_one_go_hold_all_their_rows_the_most_telling_first():
    paper = json.loads((ROOT / "mnemonics" / "reporting" / "paper_results.json").read_text())
    table, configs = reproduced("reproduce_cifar100.sh")
    mine = [({**paper_rows(dataclasses.asdict(config))}, config.nb_phases) for config in configs]
    for name, key in (("table1", "table1"), ("table2", "table2_lucir_with_weight_transfer")):
        expected = {(row, int(n)) for row, data in paper[key]["average_accuracy"].items() for n in data["cifar100"]}
        assert {(rows[name], n) for rows, n in mine if name in rows} == expected
    assert len(mine) == len({str(config) for config in configs})
    assert table is None  # rows of both
    assert [rows["table1"] for rows, _ in mine[:4]] == ["lucir", "lucir+mnemonics", "icarl", "icarl+mnemonics"]
    assert [rows["table2"] for rows, _ in mine[4:6]] == ["random w/o adjusting", "herding w/o adjusting"]
    alone = [config for config, (rows, _) in zip(configs, mine, strict=True) if not rows]
    parts = {(c.exemplars == "mnemonics", c.weight_transfer, c.finetune_epochs > 0) for c in alone}
    assert parts == {(False, True, False), (False, False, True), (True, False, False), (True, False, True)}
    first_of_10 = [n for _, n in mine].index(10)
    assert {n for _, n in mine[:first_of_10]} == {5}


def test_the_tables_on_a_cpu_are_the_same_rows_with_other_flags():
    text = (ROOT / "scripts" / "reproduce_cifar100_cpu.sh").read_text()
    ((line,),) = [re.findall(r'reproduce_cifar100.sh" (.*) "\$@"', text.replace("\\\n", " "))]
    _, options, flags = run_exp.parse_command_line(line.split())
    assert (str(options.runs_dir), options.jobs) == ("runs/cifar100_cpu", 2)
    assert run_exp.parse_main(flags).epochs == 12


def test_the_scripts_name_their_data_set():
    for script in {*(ROOT / "scripts").glob("reproduce_*.sh")} - {ROOT / "scripts" / "reproduce_cifar100_cpu.sh"}:
        data = {"subset": "imagenet_sub", "imagenet": "imagenet"}.get(script.stem.split("_")[-1], "cifar100")
        commands = re.findall(r"^python main\.py --dataset (\S+) ", script.read_text(), re.M)
        assert set(commands) == {data}
        assert os.access(script, os.X_OK)


def test_a_command_that_argparse_refuses_raises_one_line():
    with pytest.raises(UsageError, match="invalid choice") as error:
        run_exp.parse_main(["--dataset", "nothing"])
    assert "\n" not in str(error.value)
