"""Every baseline with every way of making exemplars, and the shared model of phase 0."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from contexts import CPU, context

import main
from mnemonics import algorithm as experiment
from mnemonics.baselines import BASELINES
from mnemonics.baselines.bic import BiC
from mnemonics.config.fields import ExperimentConfig
from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.experiment import phase0
from mnemonics.experiment.state import parse_args, set_up
from mnemonics.models import make_network

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = ("--mnemonics_val_batch_size 64 "
        "--dataset digits --nb_cl_fg 6 --nb_cl 2 --network resnet8 --epochs 1 --mnemonics_epochs 1 --mnemonics_steps 2 "
        "--max_images_per_class 30").split()  # fmt: skip


def run(folder, *arguments):
    """Run in this process. Returns results.json."""
    experiment.run(parse_args([*TINY, "--out", str(folder), *map(str, arguments)]))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def phase0_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("phase0")


@pytest.mark.parametrize("exemplars", ["mnemonics", "herding", "random"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_grid(tmp_path, phase0_dir, baseline, exemplars):
    finetune = 0 if baseline in ("finetune", "joint") else 2
    arguments = ("--baseline", baseline, "--exemplars", exemplars, "--nb_protos", 5, "--phase0_dir", phase0_dir)
    results = run(tmp_path / "run", *arguments, *(("--finetune_epochs", 2) if finetune else ()))
    assert [p["classes_seen"] for p in results["phases"]] == [6, 8, 10]
    kept = 4 if baseline == "bic" else 5  # BiC holds one out
    old = {"finetune": [0, 0], "joint": [180, 240]}.get(baseline, [6 * kept, 8 * kept])
    assert [p["train_images"]["old"] for p in results["phases"]] == [0, *old]
    new = 60 - 2 * (5 - kept)
    assert [p["train_images"]["new"] for p in results["phases"]] == [180, new, new]
    assert all(p["exemplars_per_class"] == {"min": 5, "max": 5} for p in results["phases"])
    assert [p["exemplar_bytes"] for p in results["phases"]] == [n * 5 * 3 * 16 * 16 for n in (6, 8, 10)]
    assert results["config"]["weight_transfer"] is (baseline not in ("finetune", "joint"))
    state = checkpoint.load(tmp_path / "run" / "phase_2.pt", torch.device("cpu"))
    assert any(name.endswith(".factor") for name in state["model"]) is (baseline not in ("finetune", "joint"))
    assert len(list(phase0_dir.glob("*.pt"))) == 1  # all runs start from one model
    if baseline == "bic":
        scale = state["model"]["classifier.scale"]
        assert (scale[:6] == 1).all()
        assert scale[6] == scale[7] != 1 != scale[8] == scale[9]


def test_bic_never_trains_on_what_it_holds_out(tmp_path, monkeypatch):
    """From phase 1 on no batch, of model or exemplar level, holds a held-out image; it is stored as it was."""
    seen, calibrated = [], []
    train_phase, calibrate = experiment.train_phase, BiC.calibrate

    def recording_train_phase(context, model, baseline, data):
        seen.append(data)
        train_phase(context, model, baseline, data)

    def recording_calibrate(self, model, held_out, prep):
        calibrated.append(held_out)
        calibrate(self, model, held_out, prep)

    monkeypatch.setattr(experiment, "train_phase", recording_train_phase)
    monkeypatch.setattr(BiC, "calibrate", recording_calibrate)
    run(tmp_path / "run", "--baseline", "bic", "--exemplars", "herding", "--nb_protos", 20, "--finetune_epochs", 2)
    state = checkpoint.load(tmp_path / "run" / "phase_2.pt", torch.device("cpu"))
    mask, stored, labels = (state["exemplars"][name] for name in ("held_out", "images", "labels"))
    held_out = stored[mask]
    assert torch.bincount(labels[mask]).tolist() == [2] * 10
    assert [len(data) for data in calibrated] == [12, 16, 16, 20, 20]  # balanced; twice where there is fine-tuning
    for image, label in zip(held_out, labels[mask].tolist(), strict=True):
        since = 1 if label < 6 else 0  # phase 0 is the one that all baselines share
        assert not any((data.images == image).flatten(1).all(1).any() for data in seen[since:])
        assert not (stored[~mask] == image).flatten(1).all(1).any()


def test_a_taken_phase_0_model_gives_the_numbers_of_a_trained_one(tmp_path):
    arguments = ("--baseline", "lwf", "--exemplars", "random", "--nb_protos", 3)
    own = run(tmp_path / "own", *arguments)
    trained, taken = (run(tmp_path / n, *arguments, "--phase0_dir", tmp_path / "shared") for n in ("a", "b"))
    facts = [r["phases"][0].pop("phase0_model", None) for r in (own, trained, taken)]
    assert facts[0] is None
    assert [f["taken"] for f in facts[1:]] == [False, True]
    assert facts[1]["train_seconds"] == facts[2]["train_seconds"] > 0
    timeless = [[{k: v for k, v in p.items() if k not in ("seconds", "peak_memory_bytes")} for p in r["phases"]]
                for r in (own, trained, taken)]  # fmt: skip
    assert timeless[0] == timeless[1] == timeless[2]


def test_a_phase_0_model_of_an_older_version_is_taken(tmp_path, monkeypatch):
    stored = next(Path(__file__).resolve().parents[2].glob("results/checkpoints/resnet32_phase0/*.pt"))
    shutil.copy(stored, tmp_path)
    monkeypatch.setattr(phase0, "key_of", lambda scenario: stored.stem)
    model, phase = make_network("resnet32", 50, CPU), context(None, ExperimentConfig(phase0_dir=str(tmp_path)))
    told = phase0.trained_or_taken(phase, model, lambda: pytest.fail("it is trained"))
    assert told == {"key": stored.stem, "taken": True, "train_seconds": 26297.91}
    state = checkpoint.load_alone(stored, checkpoint.OLDEST)
    assert state["format"] < checkpoint.FORMAT
    assert all(torch.equal(state["model"][name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("other", ["--epochs 2", "--random_seed 5", "--base_lr 0.2", "--max_images_per_class 29",
                                   "--nb_cl_fg 4", "--train_batch_size 64", "--order_seed 1"])  # fmt: skip
def test_a_phase_0_model_of_other_settings_has_another_name(other):
    flags = [*TINY, "--method", "baseline", "--nb_protos", "3"]
    same, others = [*flags, "--baseline", "bic"], [*flags, *other.split()]
    key, of_same, of_others = (phase0.key_of(set_up(parse_args(given)).scenario) for given in (flags, same, others))
    assert key == of_same != of_others


def test_a_phase0_dir_that_cannot_be_written_is_a_users_mistake(tmp_path):
    with pytest.raises(UsageError, match="--phase0_dir /dev/null/x"):
        run(tmp_path / "run", "--nb_protos", 3, "--phase0_dir", "/dev/null/x")


def test_nb_runs_repeats_with_the_next_seeds(tmp_path, capsys):
    flags = "--method baseline --nb_protos 3".split()
    assert main.main([*TINY, *flags, *"--nb_runs 2 --random_seed 5 --out".split(), str(tmp_path)]) == 0
    said = capsys.readouterr().out
    results = [json.loads((tmp_path / f"seed{seed}" / "results.json").read_text()) for seed in (5, 6)]
    assert [r["config"]["random_seed"] for r in results] == [5, 6]
    assert results[0]["summary"] != results[1]["summary"]
    single = run(tmp_path / "single", *flags, "--random_seed", 6)
    assert single["summary"] == results[1]["summary"]
    a, b = (r["summary"]["average_accuracy"]["cnn"] for r in results)
    half = 12.7062 * abs(a - b) / 2  # Student's t with one degree of freedom
    assert "2 runs, training seeds 5, 6" in said
    assert f"average accuracy: CNN {(a + b) / 2:.2f} +- {half:.2f}" in said
