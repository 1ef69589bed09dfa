"""Data shared by the tests."""

import copy
import os
import tarfile
from pathlib import Path

import pytest

TEST_DATA = Path(os.environ.get("MNEMONICS_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def cifar100_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds cifar-100-python with 10 training and 3 test images of each class of the real CIFAR-100."""
    return unpacked("cifar100_mini.tar.gz", tmp_path_factory)


@pytest.fixture(scope="session")
def imagenet_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<wnid>/ and val/<wnid>/ with 30 and 10 JPEGs of 64x64 pixels of each of 20 real ImageNet classes."""
    return unpacked("imagenet_mini.tar", tmp_path_factory) / "imagenet_mini"


def unpacked(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = TEST_DATA / name
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {TEST_DATA}; MNEMONICS_TEST_DATA names another folder")
    folder = tmp_path_factory.mktemp(name.split(".")[0])
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


RUN_CONFIG = {
    "dataset": "digits",
    "baseline": "icarl",
    "exemplars": "mnemonics",
    "nb_phases": 1,
    "nb_protos": 20,
    "total_memory": None,
    "random_seed": 7,
    "order_seed": 1993,
    "finetune_epochs": 50,
    "out": "here",
}


def make_phase(phase, seen, new, old, kept, accuracy, phase0, seconds):
    return {
        "phase": phase,
        "classes_seen": seen,
        "train_images": {"new": new, "old": old},
        "exemplars_per_class": {"min": kept[0], "max": kept[1]},
        "exemplar_bytes": 768 * seen * kept[0],
        "accuracy": accuracy,
        "phase0_accuracy": phase0,
        "seconds": seconds,
        "peak_memory_bytes": 1,
        "accuracy_by_phase_of_origin": {"cnn": [50.0] * (phase + 1), "nme": [50.0] * (phase + 1)},
    }


@pytest.fixture
def results():
    """Two phases with numbers that occur only once, so that a number in the wrong place cannot pass."""
    first = make_phase(
        0,
        5,
        718,
        0,
        (20, 20),
        {"cnn": 98.125, "nme": 97.2},
        {"cnn": 98.125, "nme": 97.2},
        {"train": 1.25, "exemplars": 2.5, "finetune": 0.0, "evaluate": 0.5},
    )
    last = make_phase(
        1,
        10,
        719,
        100,
        (18, 20),
        {"cnn": 81.5, "nme": 85.3, "cnn_before_finetune": 61.7, "nme_before_finetune": 64.9},
        {"cnn": 71.1, "nme": 90.9, "cnn_before_finetune": 1.0, "nme_before_finetune": 2.0},
        {"train": 10.0, "exemplars": 20.0, "finetune": 3.0, "evaluate": 0.25},
    )
    return {
        "config": dict(RUN_CONFIG),
        "environment": {},
        "class_order": [3, 1],
        "class_order_sha256": "ab",
        "headline": "nme",
        "phases": [first, last],
        "summary": {
            "average_accuracy": {"cnn": 89.81, "nme": 91.25},
            "last_accuracy": {"cnn": 81.5, "nme": 85.3},
            "forgetting": {"cnn": 27.03, "nme": 6.3},
        },
    }


@pytest.fixture
def other(results):
    """A baseline run whose headline is the CNN, with another budget and only phase 0 of 3 finished."""
    other = copy.deepcopy(results)
    other["config"] |= {
        "baseline": "lwf",
        "exemplars": "herding",
        "finetune_epochs": 0,
        "nb_protos": None,
        "total_memory": 2000,
        "nb_phases": 2,
        "out": "there",
    }
    other["headline"] = "cnn"
    other["phases"] = other["phases"][:1]
    other["summary"] = {
        "average_accuracy": {"cnn": 98.12, "nme": 97.2},
        "last_accuracy": {"cnn": 98.12, "nme": 97.2},
        "forgetting": {"cnn": 0.0, "nme": 0.0},
    }
    return other
