"""scripts/benchmark/benchmark.py, at sizes that only show that it works."""

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
