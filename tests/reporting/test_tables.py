"""Runs beside the paper's numbers (mnemonics/reporting/tables.py, scripts/summarise.py), on results made by hand."""

import csv
import io

import pytest
from reports import PLAIN, body, make_results, written

from mnemonics.engine.errors import UsageError
from mnemonics.reporting import tables
from mnemonics.reporting.paper import load_paper
from scripts import summarise

PAPER = load_paper()
TABLE1, TABLE2 = PAPER["table1"], PAPER["table2_lucir_with_weight_transfer"]
BASELINES, PHASES = ("lwf", "icarl", "bic", "lucir"), (5, 10, 25)


def table_of(*runs, table="all"):
    """(rows of the CSV, Markdown) of runs named a, b, c, ..."""
    text, data = tables.tabulate(list(zip("abcdefghijklm", runs, strict=False)), table)
    return list(csv.DictReader(io.StringIO(data))), text


def check_paper(row, table, name, dataset, phases):
    """The row stands beside this number of the paper, with nothing that differs from it."""
    assert (row["paper_row"], row["differences_from_paper"]) == (name, "")
    for metric in ("average_accuracy", "forgetting"):
        assert float(row[f"{metric}_paper"]) == table[metric][name.partition(" ")[2]][dataset][str(phases)]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    ("dataset", "theirs"), [("cifar100", "cifar100"), ("imagenet_sub", "imagenet_subset"), ("imagenet", "imagenet")]
)
def test_rows_of_table_1(baseline, dataset, theirs):
    large = {} if dataset == "cifar100" else {"network": "resnet18", "epochs": 90, "lamda": 10.0}
    same = large | {"baseline": baseline, "dataset": dataset}
    rows, _ = table_of(
        *(make_results(nb_phases=n, **same, **more) for n in PHASES for more in ({}, PLAIN)), table="table1"
    )
    names = [f"table1 {name}" for name in (baseline, f"{baseline}+mnemonics") for _ in PHASES]  # the paper's order
    for row, name, phases in zip(rows, names, PHASES * 2, strict=True):
        check_paper(row, TABLE1, name, theirs, phases)


@pytest.mark.parametrize("exemplars", ["random", "herding", "mnemonics"])
@pytest.mark.parametrize("adjusted", [False, True])
def test_rows_of_table_2(exemplars, adjusted):
    how = {"no_adjust": not adjusted} if exemplars == "mnemonics" else {"adjust_always": adjusted}
    runs = [make_results(nb_phases=n, exemplars=exemplars, **how) for n in PHASES]
    rows, text = table_of(*runs, table="table2")
    assert {cells[3] for cells in body(text)} == {f"{exemplars}, {'' if adjusted else 'not '}adjusted"}
    for row, phases in zip(rows, PHASES, strict=True):
        check_paper(row, TABLE2, f"table2 {exemplars}{'' if adjusted else ' w/o adjusting'}", "cifar100", phases)


def test_mnemonics_with_lucir_is_in_both_tables_whose_numbers_differ():
    marked = "old exemplars not adjusted (paper: adjusted)"
    for settings, table, *expected in (
        ({}, "all", "table1 lucir+mnemonics", "63.25", ""),
        ({}, "table2", "table2 mnemonics", "63.26", ""),
        ({"no_adjust": True}, "table1", "table1 lucir+mnemonics", "63.25", marked),
        ({"no_adjust": True}, "all", "table2 mnemonics w/o adjusting", "62.34", ""),
    ):
        row = table_of(make_results(nb_phases=10, **settings), table=table)[0][0]
        assert [row[key] for key in ("paper_row", "average_accuracy_paper", "differences_from_paper")] == expected


@pytest.mark.parametrize(
    ("settings", "exemplars"),
    [
        ({"weight_transfer": False}, ["mnemonics, adjusted", "20 per class"]),
        ({"finetune_epochs": 0}, ["mnemonics, adjusted", "20 per class"]),
        ({**PLAIN, "weight_transfer": True}, ["herding", "20 per class"]),
        ({**PLAIN, "adjust_always": True}, ["herding, adjusted", "20 per class"]),
        ({"baseline": "finetune"}, ["none", "-"]),
        ({"baseline": "joint"}, ["all data", "-"]),  # only in figure 4
    ],
)
def test_other_kinds_of_runs_have_no_number_of_the_paper(settings, exemplars):
    rows, text = table_of(make_results(**settings))
    assert rows[0]["paper_row"] == rows[0]["average_accuracy_paper"] == rows[0]["forgetting_difference"] == ""
    assert rows[0]["differences_from_paper"] == "no such row in the paper's tables 1 and 2"
    assert body(text)[0][3:5] + body(text)[0][12:14] == [*exemplars, "-", "-"]
    with pytest.raises(UsageError, match="1 finished runs that belong to no row of table1"):
        table_of(make_results(**settings), table="table1")


def test_rows_stand_in_the_order_of_the_paper_and_those_without_a_number_last():
    digits, two = make_results(dataset="digits", baseline="lwf"), make_results(nb_phases=2)
    others = [make_results(exemplars="random"), make_results(nb_phases=25), make_results(baseline="bic", **PLAIN)]
    rows, text = table_of(digits, two, make_results(dataset="imagenet_sub", **PLAIN), make_results(), *others)
    assert [" ".join(row[key] for key in ("dataset", "baseline", "exemplars", "nb_phases")) for row in rows] == [
        "cifar100 bic herding 5",
        "cifar100 lucir mnemonics, adjusted 5",
        "cifar100 lucir mnemonics, adjusted 25",
        "cifar100 lucir random, not adjusted 5",
        "imagenet_sub lucir herding 5",
        "cifar100 lucir mnemonics, adjusted 2",
        "digits lwf mnemonics, adjusted 5",
    ]
    reasons = [row["differences_from_paper"].split(";")[0] for row in rows[-2:]]
    assert reasons == [f"no number in the paper for {what}" for what in ("cifar100, N = 2", "digits, N = 5")]
    assert rows[-1]["average_accuracy_paper"] == rows[-1]["average_accuracy_difference"] == ""
    assert "Left out" not in text


def test_seeds_form_one_row_with_the_papers_number_and_the_difference():
    numbers = [(3, 64.0, 22.0, 54.0), (1, 59.0, 20.0, 50.0), (2, 60.0, 21.0, 52.0)]
    rows, text = table_of(*(make_results(*four, **PLAIN) for four in numbers))
    assert [(row["n"], row["random_seeds"], row["paper_row"]) for row in rows] == [("3", "1 2 3", "table1 lucir")]
    half = 4.30265 * (7 / 3) ** 0.5  # Student's t with 2 degrees of freedom; variance of the mean 14 / 2 / 3
    assert float(rows[0]["average_accuracy_ci95"]) == pytest.approx(half, abs=1e-4)
    cells = ["cifar100", "5", "lucir", "herding", "20 per class", "off", "0", "CNN", "1993", "3", "paper's"]
    cells += ["61.00 +- 6.57", "63.17", "-2.17", "21.00 +- 2.48", "18.70", "+2.30", "52.00 +- 4.97"]
    assert body(text) == [cells]


def test_a_single_run_has_no_interval():
    cells = body(table_of(make_results(baseline="icarl", **PLAIN))[1])[0]
    assert cells[7] == "NME"  # whose numbers these are; the network output has 1.00
    assert cells[11:] == ["60.00", "57.12", "+2.88", "20.00", "31.88", "-11.88", "50.00"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"order_seed": 7}, False),
        ({"epochs": 6}, False),
        ({"total_memory": 2000}, False),
        ({"baseline": "replay", "exemplar_format": "webp:90"}, False),
        ({"nb_cl_fg": 40, "nb_cl": 12}, False),
        ({"nb_cl_fg": 50, "nb_cl": 10}, True),  # half of all, as where it is not given
        ({"ncm": True, "out": "elsewhere", "device": "cuda", "T": 4.0}, True),  # without effect on a baseline run
        ({"method": "baseline", "mnemonics_preset": "default", "mnemonics_steps": 3, "no_adjust": True}, True),
    ],
)
def test_only_settings_that_matter_separate_rows(change, same):
    rows, _ = table_of(make_results(1, **PLAIN), make_results(2, **{**PLAIN, **change}))
    assert [row["n"] for row in rows] == (["2"] if same else ["1", "1"])


def test_a_seed_counts_once_and_unfinished_runs_do_not():
    runs = [make_results(1), make_results(1), make_results(1, 70.0), make_results(2), make_results(3, finished=3)]
    rows, text = table_of(*runs)
    assert (rows[0]["random_seeds"], rows[0]["average_accuracy"]) == ("1 2", "60.0")
    assert text.partition("Left out:\n\n")[2].splitlines() == [
        "* b: settings and seed of a, the same numbers",
        "* c: settings and seed of a, OTHER numbers",
        "* e: unfinished, 3 of 6 phases",
    ]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 6, **PLAIN}, "--epochs 6 (paper: 160)"),
        ({"total_memory": 2000, **PLAIN}, "--total_memory 2000 (paper: --nb_protos 20)"),
        (
            {"total_bytes": 99, "exemplar_format": "png", **PLAIN},
            "--total_bytes 99 (paper: --nb_protos 20); --exemplar_format png (paper: raw)",
        ),
        ({"nb_cl_fg": 40, "nb_cl": 12, **PLAIN}, "--nb_cl_fg 40 (paper: half of all)"),
        ({"baseline": "bic", "lamda": 10.0, "T": 4.0, "beta": 1.0, **PLAIN}, "--T 4.0 (paper: 2.0)"),
        ({"baseline": "lwf", "K": 5, "beta": 1.0, **PLAIN}, "--beta 1.0 (paper: 0.25)"),
        ({"network": "resnet8", "base_lr": 0.05}, "--network resnet8 (paper: resnet32); --base_lr 0.05 (paper: 0.1)"),
        ({"mnemonics_subsets": 4, "K": 5}, "--K 5 (paper: 2); --mnemonics_subsets 4 (paper: 2)"),
        ({"no_adjust": True, "mnemonics_subsets": 4, "finetune_lr": 0.02}, "--finetune_lr 0.02 (paper: 0.01)"),
        ({"exemplars": "random", "mnemonics_epochs": 3, "adjust_always": True}, "--mnemonics_epochs 3 (paper: 50)"),
        ({"eval_batch_size": 100, "ncm": True, "deterministic": True, "order_seed": 3, "nb_runs": 3}, ""),
    ],
)
def test_settings_that_are_not_the_papers_are_listed(settings, text):
    rows, table = table_of(make_results(**settings))
    assert rows[0]["differences_from_paper"] == text
    assert rows[0]["average_accuracy_paper"] != ""  # it stands beside the paper's number, but not unmarked
    assert body(table)[0][10] == ("see [1]" if text else "paper's")
    assert (f"\n* [1] {text}\n" in table) == bool(text)


def test_results_that_lack_newer_settings_count_as_what_was_done_then():
    older = make_results()
    for name in ("last_batch", "mnemonics_epoch_unit", "imprint"):
        del older["config"][name]
    assert table_of(older)[0][0]["differences_from_paper"] == "--mnemonics_epoch_unit update (paper: pass)"


def test_equal_lists_share_a_footnote_and_a_smaller_copy_of_the_data_has_one():
    runs = [make_results(baseline=b, epochs=e, **PLAIN) for b, e in zip(BASELINES, (6, 160, 160, 6), strict=True)]
    runs[1]["phases"][0]["train_images"]["new"] = 500
    _, text = table_of(*runs)
    assert [cells[10] for cells in body(text)] == ["see [1]", "see [2]", "paper's", "see [1]"]
    notes = ["* [1] --epochs 6 (paper: 160)", "* [2] 10 training images per class (paper: 500)"]
    assert [line for line in text.splitlines() if "(paper:" in line] == notes


def test_figure_4_stands_beside_the_papers_curves():
    runs = [make_results(1, 70.0), make_results(2, 72.0), make_results(baseline="joint")]
    runs += [make_results(exemplars="random"), make_results(dataset="digits", **PLAIN)]
    rows, text = table_of(*runs, table="figure4")
    assert [row["baseline"] for row in rows] == ["joint"] * 6 + ["lucir"] * 12
    curves = PAPER["figure4_accuracy_per_phase"]["cifar100"]["5"]
    assert [float(row["accuracy_paper"]) for row in rows[:12]] == curves["joint"] + curves["lucir+mnemonics"]
    assert [rows[11][key] for key in ("phase", "classes_seen", "accuracy", "n")] == ["5", "100", "66.0", "2"]
    assert rows[-1]["accuracy_paper"] == rows[-1]["accuracy_difference"] == ""
    assert "| 5     | 100          | 66.00 +- 12.71 | 56.19 | +9.81      |" in text
    assert "| 5     | 10           | 55.00      | -     | -          |" in text
    assert text.count("**data: ") == 3
    assert "1 finished runs that belong to no row of figure4" in text


def test_definitions_machines_and_commits_are_named():
    runs = [make_results(seed) for seed in range(3)]
    runs[2]["environment"] = runs[2]["environment"] | {"commit": "def-dirty"}
    _, text = table_of(*runs)
    assert text.endswith(
        "\n* machine: cpu (unknown), 2 CPUs, 1 threads, torch 2 (n = 3)\n"
        "* commit: 0123456789ab (n = 2); def-dirty (n = 1)\n"
    )
    meanings = ("average accuracy = mean over all N + 1 phases", "forgetting = ", "NME = ", "95% confidence interval")
    for words in (*meanings, "paper = arXiv 2002.10211 v2, table 1 or, for rows that only it has, table 2; difference"):
        assert words in text


def test_summarise_prints_and_writes_the_table_of_all_runs_in_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [make_results(seed, 60.0 + seed) for seed in (1, 2)]
    written(tmp_path / "runs" / "a" / "results.json", runs[0])
    written(tmp_path / "raw" / "seed2.json", runs[1])
    assert summarise.main(["runs", "raw", "runs/a", "--out", "out.v1"]) == 0
    text = (tmp_path / "out.v1.md").read_text()
    assert text == capsys.readouterr().out == table_of(*runs)[1]
    assert ",61.5,6.3531," in (tmp_path / "out.v1.csv").read_text()


def test_summarise_tells_a_mistake_in_one_line(tmp_path, told):
    good = written(tmp_path / "good" / "results.json", make_results()).parent
    started = written(tmp_path / "started" / "results.json", make_results(finished=2)).parent
    bad = written(tmp_path / "bad" / "results.json", [1])
    out = tmp_path / "missing" / "out"
    for arguments, words in (
        ([good, bad.parent, "--out", tmp_path / "out"], f"{bad}: not the results of a run"),
        ([started], f"no finished run for --table all: {started}/results.json: unfinished, 2 of 6 phases"),
        ([good, "--out", out], f"--out {out}: cannot be written (No such file or directory)"),
    ):
        assert told(summarise.main, *arguments).startswith(f"summarise.py: {words}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "started"]
