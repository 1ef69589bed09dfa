"""scripts/benchmark/benchmark.py, at sizes that only show that it works."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--dataset digits --network resnet8 --device cpu --images 96 --repeats 1 --baselines lucir --batch 4 --steps 8"


def test_parts_are_compared_with_the_plain_pipeline(tmp_path):
    """All but `protocol`, which starts a hundred loaders."""
    flags = ["train", "unroll", *SMALL.split(), "--out", tmp_path / "out.json"]
    command = [sys.executable, "scripts/benchmark/benchmark.py", *flags]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
    lines = re.findall(r"^(\S+).* ours +[\d,.]+ .*plain +[\d,.]+ .*: [\d.]+ x", out, re.M)
    assert lines == ["train,", "train,"]
    assert "peak memory at K = 8 is" in out
    results = json.loads((tmp_path / "out.json").read_text())
    assert list(results["train"]) == ["phase 0", "phase 1, lucir"]
    assert [row["K"] for row in results["unroll"]["rows"]] == [8]
    for row in results["unroll"]["rows"]:
        assert all(row["seconds"][name][0] > 0 < row["peak_bytes"][name] for name in ("ours", "plain"))
        assert row["ratio"] == row["seconds"]["ours"][0] / row["seconds"]["plain"][0]
