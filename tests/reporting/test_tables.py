"""Runs beside the paper's numbers (mnemonics/reporting/tables.py, scripts/summarise.py), on results made by hand."""

import csv
import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import resolved
from mnemonics.reporting import tables

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "summarise.py"
HEADLINE = {"icarl": "nme"}
FIRST_CLASSES = {"cifar100": 50, "digits": 5, "imagenet_sub": 50, "imagenet": 500}
PLAIN = {"exemplars": "herding", "weight_transfer": False, "finetune_epochs": 0}


@pytest.fixture(scope="module")
def paper():
    return json.loads((ROOT / "mnemonics" / "reporting" / "paper_results.json").read_text())


def run(seed=1, average=60.0, forgetting=20.0, last=50.0, finished=None, environment=None, **settings):
    """Results with the paper's settings, except those given. The classifier that is not the headline is far off."""
    given = {"dataset": "cifar100", "nb_phases": 5, "mnemonics_preset": "paper"} | settings
    config = dataclasses.asdict(resolved(ExperimentConfig(random_seed=seed, **given)))
    first, phases = FIRST_CLASSES[config["dataset"]], config["nb_phases"] + 1
    headline = HEADLINE.get(config["baseline"], "cnn")
    other = "cnn" if headline == "nme" else "nme"
    return {
        "config": config,
        "environment": environment or {},
        "headline": headline,
        "phases": [
            {
                "phase": i,
                "classes_seen": first + i * first // config["nb_phases"],
                "train_images": {"new": 500 * first, "old": 0},
                "accuracy": {headline: average - i, other: 1.0},
            }
            for i in range(phases)
        ][:finished],
        "summary": {
            "average_accuracy": {headline: average, other: 1.0},
            "forgetting": {headline: forgetting, other: 1.0},
            "last_accuracy": {headline: last, other: 1.0},
        },
    }


def parsed(text):
    return list(csv.DictReader(io.StringIO(text)))


def table_of(paper, *runs, table="all"):
    """(rows of the CSV, Markdown) of runs named a, b, c, ..."""
    named = [(chr(ord("a") + i), results) for i, results in enumerate(runs)]
    text, data = tables.tabulate(named, paper, table)
    return parsed(data), text


def body(text):
    """The rows below the header of a Markdown table, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# the paper's numbers


def test_own_copy_of_the_papers_numbers_is_complete(paper):
    names = [f"{name}{ours}" for name in ("lwf", "icarl", "bic", "lucir") for ours in ("", "+mnemonics")]
    table1 = paper["table1"]
    assert table1.keys() == {"average_accuracy", "forgetting"}
    for metric in table1.values():
        assert list(metric) == names
        assert all(list(row) == ["cifar100", "imagenet_subset", "imagenet"] for row in metric.values())
        assert all(list(cell) == ["5", "10", "25"] for row in metric.values() for cell in row.values())
        numbers = [number for row in metric.values() for cell in row.values() for number in cell.values()]
        assert len(numbers) == 8 * 3 * 3
        assert all(0 < number < 100 for number in numbers)
    for metric in paper["table2_lucir_with_weight_transfer"].values():
        assert [number > 0 for row in metric.values() for cell in row.values() for number in cell.values()] == [
            True
        ] * 36
    for dataset in paper["figure4_accuracy_per_phase"].values():
        for phases, curves in dataset.items():
            assert {name: len(curve) for name, curve in curves.items()} == dict.fromkeys(
                ("joint", "bic", "icarl", "lucir", "lwf", "lucir+mnemonics"), int(phases) + 1
            )
    assert paper["source"].startswith("arXiv 2002.10211 v2")


# numbers


def test_interval_by_hand():
    assert tables.interval([61.5]) == (61.5, None)
    # two values 60 and 62: standard deviation sqrt(2), standard error 1, t(1 degree of freedom) = 12.7062
    assert tables.interval([60.0, 62.0]) == (61.0, pytest.approx(12.7062, abs=1e-4))
    # 59, 60, 64: mean 61, sum of squares 4 + 1 + 9 = 14, variance 7, standard error sqrt(7 / 3), t(2) = 4.30265
    assert tables.interval([59.0, 60.0, 64.0]) == (61.0, pytest.approx(4.30265 * (7 / 3) ** 0.5, abs=1e-4))


def test_seeds_form_one_row_with_the_papers_number_and_the_difference(paper):
    runs = [run(3, 64.0, 22.0, 54.0, **PLAIN), run(1, 59.0, 20.0, 50.0, **PLAIN), run(2, 60.0, 21.0, 52.0, **PLAIN)]
    rows, text = table_of(paper, *runs)
    assert len(rows) == 1
    row = rows[0]
    assert (row["n"], row["random_seeds"], row["paper_row"]) == ("3", "1 2 3", "table1 lucir")
    half = 4.30265 * (7 / 3) ** 0.5  # 6.5724
    assert float(row["average_accuracy"]) == 61.0
    assert float(row["average_accuracy_ci95"]) == pytest.approx(half, abs=1e-3)
    assert float(row["average_accuracy_paper"]) == 63.17
    assert float(row["average_accuracy_difference"]) == pytest.approx(-2.17)
    assert float(row["forgetting"]) == 21.0
    assert float(row["forgetting_ci95"]) == pytest.approx(4.30265 / 3**0.5, abs=1e-4)  # standard deviation 1
    assert float(row["forgetting_paper"]) == 18.7
    assert float(row["forgetting_difference"]) == pytest.approx(2.3)
    assert float(row["last_accuracy"]) == 52.0
    assert float(row["last_accuracy_ci95"]) == pytest.approx(2 * 4.30265 / 3**0.5, abs=1e-3)
    assert row["differences_from_paper"] == ""
    cells = ["cifar100", "5", "lucir", "herding", "20 per class", "off", "0", "CNN", "1993", "3", "paper's"]
    cells += ["61.00 +- 6.57", "63.17", "-2.17", "21.00 +- 2.48", "18.70", "+2.30", "52.00 +- 4.97"]
    assert body(text) == [cells]


def test_a_single_run_has_no_interval(paper):
    rows, text = table_of(paper, run(baseline="icarl", **PLAIN))
    assert rows[0]["average_accuracy_ci95"] == rows[0]["last_accuracy_ci95"] == ""
    assert body(text)[0][7] == "NME"  # whose numbers these are; the network output has 1.00
    assert body(text)[0][11:] == ["60.00 +- -", "57.12", "+2.88", "20.00 +- -", "31.88", "-11.88", "50.00 +- -"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"order_seed": 7}, False),
        ({"epochs": 6}, False),
        ({"nb_protos": 10}, False),
        ({"total_memory": 2000}, False),
        ({"max_images_per_class": 100}, False),
        ({"ncm": True}, True),  # the rest has no effect on a baseline run
        ({"deterministic": True, "out": "elsewhere", "device": "cuda"}, True),
        ({"method": "baseline", "mnemonics_preset": "default", "mnemonics_steps": 3, "no_adjust": True}, True),
        ({"T": 4.0, "beta": 1.0}, True),
    ],
)
def test_only_settings_that_matter_separate_rows(paper, change, same):
    rows, _ = table_of(paper, run(1, **PLAIN), run(2, **{**PLAIN, **change}))
    assert [row["n"] for row in rows] == (["2"] if same else ["1", "1"])


def test_classes_of_phase_0_separate_rows_unless_half_of_all(paper):
    settings = [{}, {"nb_cl_fg": 50, "nb_cl": 10}, {"nb_cl_fg": 40, "nb_cl": 12}]
    rows, _ = table_of(paper, *(run(seed, **PLAIN, **s) for seed, s in enumerate(settings)))
    assert [(row["random_seeds"], row["differences_from_paper"]) for row in rows] == [
        ("0 1", ""),
        ("2", "--nb_cl_fg 40 (paper: half of all)"),
    ]


def test_a_seed_counts_once(paper):
    rows, text = table_of(paper, run(1), run(1), run(1, average=70.0), run(2))
    assert rows[0]["random_seeds"] == "1 2"
    assert float(rows[0]["average_accuracy"]) == 60.0
    left = text.partition("Left out:\n\n")[2].splitlines()
    assert left == ["* b: settings and seed of a, the same numbers", "* c: settings and seed of a, OTHER numbers"]


def test_unfinished_runs_are_left_out_of_the_averages_and_listed(paper):
    rows, text = table_of(paper, run(1), run(2, average=10.0, finished=3))
    assert (rows[0]["n"], rows[0]["average_accuracy"]) == ("1", "60.0")
    assert text.endswith("Left out:\n\n* b: unfinished, 3 of 6 phases\n")
    with pytest.raises(ValueError, match=r"no finished run for --table all: a: unfinished, 0 of 6 phases"):
        table_of(paper, run(finished=0))


# rows of the paper


@pytest.mark.parametrize("baseline", ["lwf", "icarl", "bic", "lucir"])
@pytest.mark.parametrize(
    ("dataset", "theirs"),
    [("cifar100", "cifar100"), ("imagenet_sub", "imagenet_subset"), ("imagenet", "imagenet")],
)
@pytest.mark.parametrize("phases", [5, 10, 25])
def test_rows_of_table_1(paper, baseline, dataset, theirs, phases):
    same = {"baseline": baseline, "dataset": dataset, "nb_phases": phases}
    same |= {"network": "resnet18", "epochs": 90, "lamda": 10.0} if dataset != "cifar100" else {}
    rows, _ = table_of(paper, run(**same), run(**same, **PLAIN), table="table1")
    for row, name in zip(rows, (baseline, f"{baseline}+mnemonics"), strict=True):  # the paper's order
        assert row["paper_row"] == f"table1 {name}"
        assert row["differences_from_paper"] == ""
        for metric in ("average_accuracy", "forgetting"):
            assert float(row[f"{metric}_paper"]) == paper["table1"][metric][name][theirs][str(phases)]


@pytest.mark.parametrize("phases", [5, 10, 25])
@pytest.mark.parametrize(
    ("name", "settings", "exemplars"),
    [
        ("random w/o adjusting", {"exemplars": "random"}, "random, not adjusted"),
        ("random", {"exemplars": "random", "adjust_always": True}, "random, adjusted"),
        ("herding w/o adjusting", {"exemplars": "herding"}, "herding, not adjusted"),
        ("herding", {"exemplars": "herding", "adjust_always": True}, "herding, adjusted"),
        ("mnemonics w/o adjusting", {"no_adjust": True}, "mnemonics, not adjusted"),
        ("mnemonics", {}, "mnemonics, adjusted"),
    ],
)
def test_rows_of_table_2(paper, name, settings, exemplars, phases):
    rows, text = table_of(paper, run(nb_phases=phases, **settings), table="table2")
    assert rows[0]["paper_row"] == f"table2 {name}"
    assert rows[0]["differences_from_paper"] == ""
    assert body(text)[0][3] == exemplars
    for metric in ("average_accuracy", "forgetting"):
        numbers = paper["table2_lucir_with_weight_transfer"][metric][name]["cifar100"]
        assert float(rows[0][f"{metric}_paper"]) == numbers[str(phases)]


def test_mnemonics_with_lucir_is_in_both_tables_whose_numbers_differ_once(paper):
    numbers = {
        table: table_of(paper, run(nb_phases=10), table=table)[0][0]["average_accuracy_paper"]
        for table in ("table1", "table2", "all")
    }
    assert numbers == {"table1": "63.25", "table2": "63.26", "all": "63.25"}
    random = table_of(paper, run(exemplars="random"))[0][0]
    assert (random["paper_row"], random["average_accuracy_paper"]) == ("table2 random w/o adjusting", "63.06")


def test_a_run_without_adjusting_stands_in_table_1_with_a_mark(paper):
    unadjusted = [run(no_adjust=True), run(baseline="icarl", no_adjust=True)]
    for table, places in {
        "table1": ["table1 icarl+mnemonics", "table1 lucir+mnemonics"],
        "all": ["table1 icarl+mnemonics", "table2 mnemonics w/o adjusting"],
    }.items():
        rows = table_of(paper, *unadjusted, table=table)[0]
        assert [row["paper_row"] for row in rows] == places
        for row in rows:
            marks = ["old exemplars not adjusted (paper: adjusted)"] if row["paper_row"].startswith("table1") else []
            assert row["differences_from_paper"].split("; ") == (marks or [""])


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_transfer": False},
        {"finetune_epochs": 0},
        {"baseline": "icarl", "exemplars": "random"},
        {**PLAIN, "exemplars": "random"},
        {**PLAIN, "finetune_epochs": 50},
        {**PLAIN, "weight_transfer": True},
        {**PLAIN, "adjust_always": True},
        {"baseline": "finetune"},
        {"baseline": "joint"},  # only in figure 4
    ],
)
def test_other_kinds_of_runs_have_no_number_of_the_paper(paper, settings):
    rows, text = table_of(paper, run(**settings))
    assert rows[0]["paper_row"] == rows[0]["average_accuracy_paper"] == rows[0]["forgetting_difference"] == ""
    assert rows[0]["differences_from_paper"] == "no such row in the paper's tables 1 and 2"
    assert body(text)[0][12:14] == ["-", "-"]
    with pytest.raises(ValueError, match="1 finished runs that belong to no row of table1"):
        table_of(paper, run(**settings), table="table1")


def test_bounds_have_no_budget(paper):
    _, text = table_of(paper, run(baseline="joint"), run(baseline="finetune"))
    assert [cells[2:6] for cells in body(text)] == [["finetune", "none", "-", "off"], ["joint", "all data", "-", "off"]]


def test_other_data_and_other_phases_have_no_number_of_the_paper(paper):
    rows, text = table_of(paper, run(dataset="digits"), run(nb_phases=2), run(dataset="imagenet", exemplars="random"))
    assert all(row["average_accuracy_paper"] == row["average_accuracy_difference"] == "" for row in rows)
    reasons = [row["differences_from_paper"].split(";")[0] for row in rows]
    assert reasons == [
        f"no number in the paper for {what}" for what in ("cifar100, N = 2", "imagenet, N = 5", "digits, N = 5")
    ]
    assert [cells[10] for cells in body(text)] == ["see [1]", "see [2]", "see [3]"]


def test_rows_stand_in_the_order_of_the_paper(paper):
    runs = [
        run(dataset="digits", baseline="lwf"),
        run(baseline="icarl", exemplars="random"),
        run(exemplars="random"),
        *(run(nb_phases=n, baseline=b) for n in (25, 5) for b in ("lucir", "lwf")),
        run(baseline="bic", **PLAIN),
        run(dataset="imagenet_sub", baseline="lwf", **PLAIN),
    ]
    rows, _ = table_of(paper, *runs)
    assert [(row["dataset"], row["baseline"], row["exemplars"], row["nb_phases"]) for row in rows] == [
        ("cifar100", "lwf", "mnemonics", "5"),
        ("cifar100", "lwf", "mnemonics", "25"),
        ("cifar100", "bic", "herding", "5"),
        ("cifar100", "lucir", "mnemonics", "5"),
        ("cifar100", "lucir", "mnemonics", "25"),
        ("cifar100", "lucir", "random", "5"),
        ("imagenet_sub", "lwf", "herding", "5"),
        ("cifar100", "icarl", "random", "5"),
        ("digits", "lwf", "mnemonics", "5"),
    ]


# settings that are not the paper's


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 6, **PLAIN}, "--epochs 6 (paper: 160)"),
        ({"total_memory": 2000, **PLAIN}, "--total_memory 2000 (paper: --nb_protos 20)"),
        ({"nb_protos": 10, **PLAIN}, "--nb_protos 10 (paper: 20)"),
        ({"max_images_per_class": 100, **PLAIN}, "--max_images_per_class 100 (paper: all)"),
        ({"lamda": 10.0, "T": 4.0, **PLAIN}, "--lamda 10.0 (paper: 5.0)"),
        ({"baseline": "bic", "lamda": 10.0, "T": 4.0, "beta": 1.0, **PLAIN}, "--T 4.0 (paper: 2.0)"),
        ({"baseline": "lwf", "K": 5, "beta": 1.0, **PLAIN}, "--beta 1.0 (paper: 0.25)"),
        ({"network": "resnet8", "base_lr": 0.05}, "--network resnet8 (paper: resnet32); --base_lr 0.05 (paper: 0.1)"),
        ({"mnemonics_augment": True}, "--mnemonics_augment on (paper: off)"),
        (
            {"mnemonics_subsets": 4, "finetune_lr": 0.02},
            "--mnemonics_subsets 4 (paper: 2); --finetune_lr 0.02 (paper: 0.01)",
        ),
        (
            {"mnemonics_subsets": 4, "no_adjust": True, "mnemonics_variant": "unroll-fc"},
            "--mnemonics_variant unroll-fc (paper: unroll)",
        ),
        (
            {"exemplars": "random", "mnemonics_epochs": 3, "mnemonics_batch_size": 64},
            "--mnemonics_batch_size 64 (paper: 128)",
        ),
        (
            {"exemplars": "random", "mnemonics_epochs": 3, "mnemonics_start": "herding", "adjust_always": True},
            "--mnemonics_epochs 3 (paper: 50)",
        ),
        (
            {"mnemonics_preset": "default"},
            "--mnemonics_base joint (paper: new); --mnemonics_start herding (paper: random); "
            "--mnemonics_steps 15 (paper: 50); --mnemonics_val_batch_size 512 (paper: 128); "
            "--mnemonics_disturb 0.2 (paper: 0.0); --mnemonics_epochs 20 (paper: 50); "
            "--mnemonics_optimizer adam (paper: sgd); --mnemonics_augment on (paper: off); "
            "--finetune_epochs 15 (paper: 50)",
        ),
        ({"eval_batch_size": 100, "ncm": True, "deterministic": True, "order_seed": 3, "nb_runs": 3}, ""),
    ],
)
def test_settings_that_are_not_the_papers_are_listed(paper, settings, text):
    rows, table = table_of(paper, run(**settings))
    assert rows[0]["differences_from_paper"] == text
    assert rows[0]["average_accuracy_paper"] != ""  # it stands beside the paper's number, but not unmarked
    assert body(table)[0][10] == ("see [1]" if text else "paper's")
    assert (f"\n* [1] {text}\n" in table) == bool(text)


def test_equal_lists_share_a_footnote(paper):
    runs = [run(baseline=b, epochs=e, **PLAIN) for b, e in (("lwf", 6), ("icarl", 2), ("bic", 160), ("lucir", 6))]
    _, text = table_of(paper, *runs)
    assert [cells[10] for cells in body(text)] == ["see [1]", "see [2]", "paper's", "see [1]"]
    notes = [line for line in text.splitlines() if line.startswith("* [") and "--" in line]
    assert notes == ["* [1] --epochs 6 (paper: 160)", "* [2] --epochs 2 (paper: 160)"]


def test_a_smaller_copy_of_the_data_is_not_the_papers(paper):
    small = run(2, **PLAIN)
    small["phases"][0]["train_images"]["new"] = 500
    rows, _ = table_of(paper, run(1, **PLAIN), small)
    assert [row["differences_from_paper"] for row in rows] == ["", "10 training images per class (paper: 500)"]


# figure 4


def test_figure_4_stands_beside_the_papers_curves(paper):
    runs = [run(1, 70.0), run(2, 72.0), run(baseline="joint"), run(exemplars="random"), run(dataset="digits", **PLAIN)]
    rows, text = table_of(paper, *runs, table="figure4")
    assert [row["baseline"] for row in rows] == ["joint"] * 6 + ["lucir"] * 12
    curves = paper["figure4_accuracy_per_phase"]["cifar100"]["5"]
    assert [float(row["accuracy_paper"]) for row in rows[:12]] == curves["joint"] + curves["lucir+mnemonics"]
    last = rows[11]
    assert (last["phase"], last["classes_seen"], last["accuracy"], last["n"]) == ("5", "100", "66.0", "2")
    assert float(last["accuracy_ci95"]) == pytest.approx(12.7062, abs=1e-4)
    assert float(last["accuracy_difference"]) == pytest.approx(66 - 56.19)
    assert rows[-1]["accuracy_paper"] == rows[-1]["accuracy_difference"] == ""
    assert "| 5     | 100          | 66.00 +- 12.71 | 56.19 | +9.81      |" in text
    assert "| 5     | 10           | 55.00 +- - | -     | -          |" in text
    assert text.count("**data: ") == 3
    assert "1 finished runs that belong to no row of figure4" in text


# below the table


def test_definitions_machines_and_commits_are_named(paper):
    machine = {"device": "cpu", "device_name": "x86_64", "cpu_count": 2, "threads": 1, "torch": "2.12.1"}
    runs = [run(seed, environment=machine | {"commit": c}) for seed, c in enumerate(("abc", "abc", "def-dirty"))]
    _, text = table_of(paper, *runs)
    assert "\n* machine: cpu (x86_64), 2 CPUs, 1 threads, torch 2.12.1 (n = 3)\n" in text
    assert "\n* commit: abc (n = 2); def-dirty (n = 1)\n" in text
    for words in (
        "average accuracy = mean over all N + 1 phases, phase 0 included",
        "forgetting = accuracy on the test images of the phase-0 classes of the first model minus that of the last",
        "opposite sign",
        "NME = nearest mean of exemplars",
        "95% confidence interval",
        "paper = arXiv 2002.10211 v2, table 1 or, for rows that only it has, table 2; difference = here minus paper",
    ):
        assert words in text


# scripts/summarise.py


@pytest.fixture(scope="module")
def summarise():
    spec = importlib.util.spec_from_file_location("summarise", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_summarise_from_any_folder_reads_folders_and_files(paper, tmp_path):
    runs = [run(seed, 60.0 + seed) for seed in (1, 2, 3, 4)]
    written(tmp_path / "runs" / "a" / "results.json", runs[0])
    written(tmp_path / "runs" / "a" / "config.json", runs[0]["config"])
    written(tmp_path / "runs" / "deep" / "er" / "results.json", runs[1])
    written(tmp_path / "raw" / "seed3.json", runs[2])
    written(tmp_path / "raw" / "notes.json", "{")
    single = written(tmp_path / "fourth.json", runs[3])
    command = [sys.executable, str(SCRIPT), "runs", "raw", single.name, "runs/a", "--out", "out.v1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.v1.md").read_text() == done.stdout
    assert "Left out" not in done.stdout  # runs/a is named twice, and counted once
    rows = parsed((tmp_path / "out.v1.csv").read_text())
    assert [(row["n"], row["random_seeds"], row["average_accuracy"]) for row in rows] == [("4", "1 2 3 4", "62.5")]
    named = [(str(i), results) for i, results in enumerate(runs)]
    assert tables.tabulate(named, paper, "all")[0] == done.stdout


def test_summarise_prints_one_line_for_a_mistake(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"summarise.py: {tmp_path / 'missing'}: cannot be read (No such file or directory); give a run folder or its "
        "results.json"
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("results.json", "{", "not JSON"),
        ("results.json", [1], "not the results of a run (TypeError"),
        ("results.json", {"phases": []}, "not the results of a run (KeyError: 'config')"),
        ("results.json", run() | {"summary": {}}, "not the results of a run (KeyError: 'average_accuracy')"),
        ("results.json", run() | {"environment": [1]}, "not the results of a run (AttributeError"),
        ("other.json", {"phases": []}, "holds no results"),
    ],
)
def test_summarise_names_what_it_cannot_use(summarise, tmp_path, capsys, name, content, reason):
    written(tmp_path / "good" / "results.json", run())
    path = written(tmp_path / "bad" / name, content)
    assert summarise.main([str(tmp_path / "good"), str(tmp_path / "bad"), "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    where = path if name == "results.json" else path.parent
    assert output.err.startswith(f"summarise.py: {where}: {reason}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "good"]


def test_summarise_reports_unfinished_runs_and_files_it_cannot_write(summarise, tmp_path, capsys):
    folder = written(tmp_path / "started" / "results.json", run(finished=2)).parent
    assert summarise.main([str(folder)]) == 2
    assert capsys.readouterr().err.endswith(": unfinished, 2 of 6 phases\n")
    written(folder / "results.json", run())
    out = tmp_path / "missing" / "out"
    assert summarise.main([str(folder), "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"summarise.py: --out {out}: {out}.md cannot be written (No such file or directory)\n"
    )
