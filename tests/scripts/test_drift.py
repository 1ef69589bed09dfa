"""scripts/benchmark/exemplar_drift.py on real, tiny runs on digits."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from mnemonics import algorithm as experiment
from mnemonics.experiment.state import parse_args

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--dataset digits --max_images_per_class 40 --nb_phases 5 --network resnet8 --epochs 2 --device cpu "
        "--mnemonics_epochs 2 --mnemonics_steps 2 --mnemonics_outer_lr 0.1 --finetune_epochs 1").split()  # fmt: skip
spec = importlib.util.spec_from_file_location("exemplar_drift", ROOT / "scripts" / "benchmark" / "exemplar_drift.py")
drift = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drift)


def run(folder, *flags, budget=("--nb_protos", "3")):
    experiment.run(parse_args([*TINY, *budget, "--out", str(folder), *flags]))
    return folder


@pytest.fixture(scope="module")
def adjusted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "adjusted", "--adjust_always")


def test_only_adjusting_moves_exemplars(adjusted, tmp_path, capsys):
    fixed = run(tmp_path / "fixed", "--exemplars", "herding")
    capsys.readouterr()
    assert drift.main([str(fixed), str(adjusted), "--device", "cpu", "--out", str(tmp_path / "drift.json")]) == 0
    rows = json.loads((tmp_path / "drift.json").read_text())
    assert [(row["run"], row["phase"]) for row in rows] == [(r, i) for r in ("fixed", "adjusted") for i in range(6)]
    moved = [row["moved_grey_levels"] for row in rows]
    assert moved[:7] == [0] * 7
    assert 0 < moved[7] < moved[11] < 64
    assert len({row["accuracy_of_phase_0"] for row in rows[:6]}) == 1
    assert rows[0]["accuracy"] == rows[0]["accuracy_of_phase_0"]
    for folder, part in ((fixed, rows[:6]), (adjusted, rows[6:])):
        phases = json.loads((folder / "results.json").read_text())["phases"]
        own = [phase["accuracy_by_phase_of_origin"]["cnn"][0] for phase in phases]
        assert [row["test_accuracy"] for row in part] == pytest.approx(own, abs=0.006)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 14
    assert f"{rows[11]['loss']}" in table[-1]


def test_a_mistake_is_told_in_one_line(adjusted, tmp_path, capsys):
    dropped = run(tmp_path / "dropped", budget=("--total_memory", "20"))
    damaged = shutil.copytree(adjusted, tmp_path / "damaged")
    (damaged / "phase_3.pt").write_bytes((damaged / "phase_3.pt").read_bytes()[:1000])
    for folder, words in (
        (tmp_path, ["phase_0.pt", "folder of a run"]),
        (dropped, ["phase_1.pt", "dropped"]),
        (damaged, ["phase_3.pt"]),
    ):
        assert drift.main([str(folder), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(word in error for word in words), error
    assert drift.main([str(adjusted), "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
