"""Reading what runs left behind (mnemonics/reporting/read.py, mnemonics/experiment/results.py)."""

import json

import numpy as np
import pytest
from reports import make_results, tiny_run, written

from mnemonics.engine.errors import UsageError
from mnemonics.experiment.results import Confusion, digest_of, read_confusion, write_confusion
from mnemonics.reporting.read import load_all, load_results, run_names


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([1], "not the results of a run, which have class_order, "),
        ({"phases": [{}]}, "not the results of a run"),
        (make_results(finished=0), "no phase is finished yet"),
        (make_results() | {"sha256": "0"}, "was changed after the run (its checksum is wrong)"),
    ],
)
def test_what_is_wrong_with_results_is_named(tmp_path, content, reason):
    path = written(tmp_path / "results.json", content)
    for call, argument in ((load_results, tmp_path), (load_all, [tmp_path])):
        with pytest.raises(UsageError) as error:
            call(argument)
        assert str(error.value).startswith(f"{path}: {reason}")


def test_results_of_a_run_are_read_without_their_checksum_and_a_missing_file_is_named(tmp_path):
    folder = tiny_run("herding")
    results = load_results(folder)
    assert "sha256" not in results
    assert digest_of(results) == json.loads((folder / "results.json").read_text())["sha256"]
    with pytest.raises(UsageError, match=r"results\.json: cannot be read \(No such file or directory\); give a run"):
        load_results(tmp_path)


def test_all_results_in_a_folder_each_once(tmp_path):
    folder = written(tmp_path / "a" / "results.json", make_results()).parent
    file = written(tmp_path / "raw" / "seed2.json", make_results(2))
    written(tmp_path / "raw" / "notes.json", "{")
    written(tmp_path / "a" / "config.json", {})
    found = load_all([tmp_path, folder, file, folder / "results.json"])
    assert [name for name, _ in found] == [str(folder / "results.json"), str(file)]
    with pytest.raises(UsageError, match="empty: holds no results of a run"):
        load_all([written(tmp_path / "empty" / "x.json", {}).parent])


def test_names_of_runs_differ(tmp_path):
    runs = [tmp_path / parent / "run" for parent in ("a", "b")]
    assert run_names(runs) == [str(run) for run in runs]
    assert run_names([runs[0], written(tmp_path / "file.json", {})]) == ["run", "file"]


def test_a_confusion_matrix_comes_back_and_a_damaged_one_is_named(tmp_path):
    assert read_confusion(tmp_path) is None
    confusion = Confusion(5, "cnn", ["a", "b"], np.array([[3, 1], [0, 2]]))
    write_confusion(tmp_path, confusion)
    found = read_confusion(tmp_path)
    assert (vars(found) | {"counts": found.counts.tolist()}) == (vars(confusion) | {"counts": [[3, 1], [0, 2]]})
    content = json.loads((tmp_path / "confusion.json").read_text())
    del content["sha256"]
    for change in ({"counts": [[1, 2]]}, {"counts": "x"}, {"class_names": None}):
        written(tmp_path / "confusion.json", content | change)
        with pytest.raises(UsageError, match=r"confusion\.json: not a confusion matrix"):
            read_confusion(tmp_path)
