"""scripts/benchmark/benchmark.py, at sizes that only show that it works."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--dataset digits --network resnet8 --device cpu --images 96 --repeats 1 --baselines lucir --epochs 1 "
    "--batch 4 --steps 2 8"
)


def test_every_part_is_compared_with_the_plain_pipeline(tmp_path):
    command = [sys.executable, "scripts/benchmark/benchmark.py", "all", *SMALL.split(), "--out", tmp_path / "out.json"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
    lines = re.findall(r"^(\S+).* ours +[\d,.]+ .*plain +[\d,.]+ .*: [\d.]+ x", out, re.M)
    assert lines == ["train,", "train,", "select,", "evaluate", "protocol,"]
    assert "peak memory at K = 8 is" in out
    results = json.loads((tmp_path / "out.json").read_text())
    chance = 100 / 10  # after one epoch the network output of the plain pipeline, which has no seed, is often below it
    accuracies = results["protocol"]["accuracies"]
    assert all(nme > 2 * chance for phases in accuracies.values() for _, nme in phases[:2])
    assert all(cnn > chance for cnn, _ in accuracies["ours"][:2])
    assert list(results["train"]) == ["phase 0", "phase 1, lucir"]
    assert [row["K"] for row in results["unroll"]["rows"]] == [2, 8]
    for row in results["unroll"]["rows"]:
        assert all(row["seconds"][name][0] > 0 < row["peak_bytes"][name] for name in ("ours", "plain"))
        assert row["ratio"] == row["seconds"]["ours"][0] / row["seconds"]["plain"][0]
