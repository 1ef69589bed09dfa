"""scripts/benchmark/exemplar_drift.py on real, tiny runs on digits."""

import json
import shutil

import pytest
from reports import TINY, mistake, script, tiny_run

from mnemonics import algorithm
from mnemonics.experiment.state import parse_args

main = script("benchmark/exemplar_drift").main


def test_only_adjusting_moves_exemplars(tmp_path, capsys):
    folders = [tiny_run(kind) for kind in ("herding", "adjusted")]
    capsys.readouterr()
    assert main([*map(str, folders), "--device", "cpu", "--out", str(tmp_path / "drift.json")]) == 0
    rows = json.loads((tmp_path / "drift.json").read_text())
    assert [(row["run"], row["phase"]) for row in rows] == [(r, i) for r in ("herding", "adjusted") for i in range(6)]
    moved = [row["moved_grey_levels"] for row in rows]
    assert moved[:7] == [0] * 7
    assert 0 < moved[7] < moved[11] < 64
    assert len({row["accuracy_of_phase_0"] for row in rows[:6]}) == 1
    assert rows[0]["accuracy"] == rows[0]["accuracy_of_phase_0"]
    for folder, part in zip(folders, (rows[:6], rows[6:]), strict=True):
        phases = json.loads((folder / "results.json").read_text())["phases"]
        own = [phase["accuracy_by_phase_of_origin"]["cnn"][0] for phase in phases]
        assert [row["test_accuracy"] for row in part] == pytest.approx(own, abs=0.006)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 14
    assert f"{rows[11]['loss']}" in table[-1]


def test_a_mistake_is_told_in_one_line(tmp_path, capsys):
    dropped, damaged = tmp_path / "dropped", shutil.copytree(tiny_run("herding"), tmp_path / "damaged")
    flags = TINY.replace("--nb_protos 2", "--total_memory 10 --exemplars herding --nb_phases 1 --nb_cl_fg 5")
    algorithm.run(parse_args([*flags.split(), "--out", str(dropped)]))
    (damaged / "phase_3.pt").write_bytes((damaged / "phase_3.pt").read_bytes()[:1000])
    for folder, words in ((tmp_path, "holds neither phase_<i>.pt nor"), (dropped, "exemplars were dropped"),
                          (damaged, "phase_3.pt")):  # fmt: skip
        assert words in mistake(capsys, main, folder, "--device", "cpu")
    out = tmp_path / "missing" / "drift.json"
    assert f"--out {out}" in mistake(capsys, main, tiny_run("herding"), "--device", "cpu", "--out", out)
