"""scripts/compare_runs.py, on results made by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import BLUE, count, pixels

from mnemonics.reporting.text import comparison_table

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_runs.py"


@pytest.fixture
def compare():
    spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, content) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_compare_runs_from_any_folder(results, other, tmp_path):
    runs = [write_run(tmp_path / "runs" / "mine", results), write_run(tmp_path / "runs" / "theirs", other)]
    for name in ("exemplars_phase_10.png", "exemplars_phase_2.png", "accuracy.png", "unrelated.png"):
        (runs[0] / name).touch()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "runs/mine", "runs/theirs"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    table, _, listed = done.stdout.partition("\npictures:\n")
    assert table.rstrip("\n") == comparison_table([("mine", results), ("theirs", other)])
    assert [Path(line.strip()) for line in listed.splitlines()] == [
        Path("runs/mine/exemplars_phase_2.png"),
        Path("runs/mine/exemplars_phase_10.png"),
        Path("runs/mine/accuracy.png"),
        Path("accuracy_comparison.png"),
    ]
    assert count(pixels(tmp_path / "accuracy_comparison.png"), BLUE) > 100


def test_compare_runs_tells_equal_folder_names_apart(compare, results, tmp_path, capsys):
    runs = [str(write_run(tmp_path / parent / "run", results)) for parent in ("a", "b")]
    assert compare.main([*runs, "--out", str(tmp_path / "c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == runs


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[1]", "not the results of a run"),
        ('{"phases": [{}]}', "not the results of a run"),
        ('{"phases": []}', "no phase is finished yet"),
    ],
)
def test_compare_runs_names_the_file_it_cannot_use(compare, results, tmp_path, capsys, content, reason):
    good, bad = write_run(tmp_path / "good", results), tmp_path / "bad"
    if content is not None:
        write_run(bad, content)
    assert compare.main([str(good), str(bad), "--out", str(tmp_path / "c.png")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(f"{bad / 'results.json'}: {reason}")
    assert not (tmp_path / "c.png").exists()


def test_compare_runs_reports_a_plot_it_cannot_write(compare, results, tmp_path, capsys):
    out = tmp_path / "missing" / "c.png"
    assert compare.main([str(write_run(tmp_path / "run", results)), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"--out {out}: cannot be written (No such file or directory)\n"
