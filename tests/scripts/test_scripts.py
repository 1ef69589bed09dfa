"""The scripts of measurements, at sizes that only show that they work."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def script(name, *arguments):
    command = [sys.executable, f"scripts/{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


def test_benchmark_unroll_compares_time_and_memory():
    out = script(
        "benchmark/benchmark.py", "unroll", "--network", "resnet8", "--batch", 4, "--steps", 2, 8, "--repeats", 1
    )
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["2"], ["8"])]
    assert [len(row) for row in rows] == [6, 6]
    assert [row[0] for row in rows] == ["2", "8"]
    assert all(float(cell) > 0 for row in rows for cell in row)
    assert "peak memory at K = 8 is" in out


def test_benchmark_compares_every_part_with_the_plain_pipeline(tmp_path):
    small = ("--dataset", "digits", "--network", "resnet8", "--device", "cpu", "--images", 96, "--repeats", 1,
             "--baselines", "lucir")  # fmt: skip
    for part, rows in {"train": 2, "augment": 1, "protocol": 1}.items():
        out = script("benchmark/benchmark.py", part, *small, "--epochs", 1, "--out", tmp_path / "out.json")
        assert len(re.findall(r"ours +[\d,.]+ .*plain +[\d,.]+ .*: [\d.]+ x", out)) == rows
        results = json.loads((tmp_path / "out.json").read_text())[part]
    chance = 100 / 10  # after one epoch the network output of the plain pipeline, which has no seed, is often below it
    assert all(nme > 2 * chance for runs in results["accuracies"].values() for _, nme in runs[:2])
    assert all(cnn > chance for cnn, _ in results["accuracies"]["ours"][:2])


def test_exemplar_study_measures_continues_and_tabulates(cifar100_mini, tmp_path):
    out, common = tmp_path / "study.jsonl", ("--data_dir", cifar100_mini, "--epochs", 1, "--nb_protos", 2, "--seeds", 1)
    rows = "--exemplars random; --mnemonics_val_batch_size 64 --mnemonics_epochs 1 --mnemonics_steps 2"
    arguments = (*common, "--rows", rows, "--work_dir", tmp_path / "work", "--out", out)
    script("exemplar_study.py", "one", *arguments)
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["row"] for r in results] == rows.split("; ")
    assert results[0]["before"]["cnn"] == results[1]["before"]["cnn"]  # one model, and exemplars only matter afterwards
    assert set(results[1]["validation_loss"]) == {"start", "optimised", "rounded"}
    script("exemplar_study.py", "one", *arguments)
    assert len(out.read_text().splitlines()) == 2
    script("exemplar_study.py", "gradients", *common, "--rows", "--mnemonics_steps 2", *arguments[-4:])
    gradient = json.loads(out.read_text().splitlines()[2])["gradient"]
    assert 0 < gradient["mean"] < gradient["max"]
    table = script("exemplar_study.py", "table", "--out", out)
    assert "| `--epochs 1 --mnemonics_steps 2` | 1 | " + f"{gradient['mean']:.1e}" in table
    assert "| `--epochs 1 --exemplars random` | 1 | " + f"{results[0]['after']['cnn']:.2f}" in table


def test_exemplar_study_follows_exemplars_into_the_next_phase(cifar100_mini, tmp_path):
    out, rows = tmp_path / "study.jsonl", "--exemplars random; --mnemonics_epochs 1 --mnemonics_steps 2"
    rows += " --mnemonics_val_batch_size 64 --mnemonics_outer_lr 0.1"
    script("exemplar_study.py", "next", "--data_dir", cifar100_mini, "--epochs", 1, "--nb_protos", 2, "--seeds", 1,
           "--rows", rows, "--work_dir", tmp_path / "work", "--out", out)  # fmt: skip
    plain, optimised = (json.loads(line) for line in out.read_text().splitlines())
    assert len(plain["by_origin"]["before"]["cnn"]) == 2
    assert plain["change_grey_levels"] == 0 < optimised["change_grey_levels"]
    assert plain["validation_loss"] is None
    assert plain["phase0"]["cnn"] == optimised["phase0"]["cnn"]  # one model
    cells = [f"{plain[when][name]:.2f}" for when, name in
             (("phase0", "nme"), ("before", "cnn"), ("after", "cnn"), ("after", "nme"))]  # fmt: skip
    table = script("exemplar_study.py", "table", "--out", out)
    assert f"| `--epochs 1 --exemplars random` | 1 | {' | '.join(cells)} | " in table


def test_the_table_of_the_study_is_that_of_its_raw_numbers():
    table = script("exemplar_study.py", "table")
    assert table in (ROOT / "results" / "exemplar_study.md").read_text(encoding="utf-8")
