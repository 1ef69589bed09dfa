"""scripts/compare_runs.py, on results made by hand."""

from pathlib import Path

from pictures import BLUE, count, pixels
from reports import make_results, mistake, script, written

from mnemonics.reporting.text import comparison_table

main = script("compare_runs").main


def test_compare_runs_prints_the_table_and_names_the_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [make_results(), make_results(finished=1, baseline="lwf")]
    for name, results in zip(("mine", "theirs"), runs, strict=True):
        written(Path("runs") / name / "results.json", results)
    pictures = [f"runs/mine/{name}.png" for name in ("exemplars_phase_2", "exemplars_phase_10", "accuracy")]
    for path in (*pictures, "runs/mine/unrelated.png"):
        Path(path).touch()
    assert main(["runs/mine", "runs/theirs"]) == 0
    table, _, listed = capsys.readouterr().out.partition("\npictures:\n")
    assert table.rstrip("\n") == comparison_table([("mine", runs[0]), ("theirs", runs[1])])
    assert [line.strip() for line in listed.splitlines()] == [*pictures, "accuracy_comparison.png"]
    assert count(pixels(tmp_path / "accuracy_comparison.png"), BLUE) > 100


def test_compare_runs_tells_a_mistake_in_one_line(tmp_path, capsys):
    run = written(tmp_path / "run" / "results.json", make_results()).parent
    assert mistake(capsys, main, run, tmp_path).startswith(f"compare_runs.py: {tmp_path}/results.json: cannot be read")
