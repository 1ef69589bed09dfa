"""What `export` writes of a run's exemplars, and where it says that they come from."""

import csv
import json
from pathlib import Path

import pytest
import torch

from mnemonics import __main__, exemplars_of
from mnemonics.algorithm import run
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.cifar import would_download
from mnemonics.data.files import read_images
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.experiment.state import parse_args

TINY = "--dataset digits --nb_cl_fg 6 --nb_cl 2 --network resnet8 --epochs 1 --method baseline --device cpu".split()
RUNS = {
    "raw": "--nb_protos 10 --baseline bic --max_images_per_class 60",  # a tenth is held out
    "png": "--nb_protos 5 --exemplar_format png --exemplars random",
    "jpeg": "--nb_protos 5 --exemplar_format jpeg:80",
    "optimised": "--nb_protos 3 --exemplars mnemonics --mnemonics_epochs 2 --mnemonics_steps 2",
}


NAMES = {"class_names": ["../../up"] * 10, "train_images": [], "test_images": [], "fingerprint": ""}


@pytest.fixture(scope="module", params=RUNS)
def stored(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    run(parse_args([*TINY, *RUNS[request.param].split(), "--out", str(folder)]))
    return folder


def exported(*arguments):
    assert __main__.main(["export", *map(str, arguments)]) == 0
    return list(csv.DictReader((Path(arguments[1]) / "exemplars.csv").read_text("utf-8").splitlines()))


@pytest.mark.parametrize("phase", [0, None])
def test_files_table_and_data_set_are_what_the_run_stores(stored, phase, tmp_path, capsys):
    rows = exported(stored, tmp_path, *([] if phase is None else ["--phase", phase]))
    said, (images, ids) = capsys.readouterr().out, exemplars_of(stored, phase).tensors
    results, source = json.loads((stored / "results.json").read_text()), load_source(ExperimentConfig("digits"))
    of_phase, order = results["phases"][-1 if phase is None else phase], results["class_order"]
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")} == {row["file"] for row in rows}
    assert torch.equal(read_images([tmp_path / row["file"] for row in rows], 16, None), images)
    assert [row["class"] for row in rows] == [Path(row["file"]).parent.name for row in rows]
    assert [int(row["class"]) for row in rows] == ids.tolist()
    assert {int(row["class"]): int(row["phase"]) for row in rows} == {
        order[k]: max(0, (k - 4) // 2) for k in range(of_phase["classes_seen"])
    }
    assert sum(float(row["bytes"]) for row in rows) == pytest.approx(of_phase["exemplar_bytes"], abs=1)
    real = [row["origin"] != "" for row in rows]
    assert f"{len(rows)} exemplars of {of_phase['classes_seen']} classes, {sum(real)} of them unchanged" in said
    assert all(real) if stored.name in ("raw", "png") else not any(real)
    assert ("the column origin is empty: --exemplar_format jpeg:80" in said) == (stored.name == "jpeg")
    index = torch.tensor([int(row["origin"]) for row in rows if row["origin"]], dtype=torch.int64)
    assert torch.equal(source.train_images[index], images[torch.tensor(real)])
    assert torch.equal(source.train_class_ids[index], ids[torch.tensor(real)])


of_one_run = pytest.mark.parametrize("stored", ["raw"], indirect=True)


@of_one_run
@pytest.mark.parametrize("dataset", ["cifar100", "folder"])
def test_without_the_data_set_origins_are_empty_and_nothing_is_downloaded(
    stored, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("mnemonics.data.cifar.download", None)
    state = checkpoint.load(stored / "phase_0.pt", torch.device("cpu"))
    state["settings"] |= {"dataset": dataset}
    checkpoint.save(tmp_path / "phase_0.pt", state)
    rows = exported(tmp_path, tmp_path / "out", "--data_dir", tmp_path / "no")
    assert {row["origin"] for row in rows} == {""}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "origin is empty" in line]
    assert f"--data_dir {tmp_path}/no: " in line


@of_one_run
@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, ["{run}", "{run}"], "DIR {run}: is not empty; name another folder, or remove what is there"),
        ({}, ["{run}", "{run}/phase_0.pt"], "DIR {run}/phase_0.pt: "),
        ({}, ["{run}", "{run}/out", "--phase", "3"], "--phase 3: {run} holds phase 0"),
        ({"data": NAMES}, ["{run}", "{run}/out"], "its class '../../up' cannot be"),
        ({"data": None}, ["{run}", "{run}/out"], "{run}: older versions did not store what classes are called"),
    ],
)
def test_what_cannot_be_exported(stored, change, arguments, message, tmp_path, told):
    state = checkpoint.load(stored / "phase_0.pt", torch.device("cpu"))
    checkpoint.save(tmp_path / "phase_0.pt", state | change)
    error = told(__main__.main, "export", *(part.format(run=tmp_path) for part in arguments))
    assert message.format(run=tmp_path) in error
    assert [path.name for path in tmp_path.iterdir()] == ["phase_0.pt"]


def test_no_exemplars(tmp_path, told):
    run(parse_args([*TINY, "--nb_protos", "0", "--out", str(tmp_path)]))
    assert told(__main__.main, "export", tmp_path, tmp_path / "out").endswith("phase_2.pt: holds no exemplars\n")


def test_cifar_is_looked_for_wherever_it_may_be(cifar100_mini, tmp_path):
    def missing(folder):
        return would_download(ExperimentConfig("cifar100", data_dir=str(folder)))

    (tmp_path / "train").mkdir()
    places = cifar100_mini, cifar100_mini / "cifar-100-python", tmp_path
    assert [missing(folder) for folder in places] == [False] * 3
    assert missing(tmp_path / "train")
    assert not would_download(ExperimentConfig("digits", data_dir="nowhere"))


@pytest.mark.parametrize("stored", ["raw"], indirect=True)
def test_a_single_exemplar(stored, tmp_path):
    state = checkpoint.load(stored / "phase_0.pt", torch.device("cpu"))
    state["exemplars"] = {name: value[:1] for name, value in state["exemplars"].items()}
    checkpoint.save(tmp_path / "phase_0.pt", state)
    (row,) = exported(tmp_path / "phase_0.pt", tmp_path / "out")
    assert row["phase"] == "0"
