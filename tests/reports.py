"""What tests of reports share: results made by hand, tiny real runs, readers of tables and PNGs."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mnemonics import algorithm
from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import resolved
from mnemonics.experiment.state import parse_args
from mnemonics.reporting.paper import is_bound

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--dataset digits --max_images_per_class 40 --nb_phases 5 --network resnet8 --epochs 1 --nb_protos 2 "
        "--mnemonics_val_batch_size 64 --mnemonics_epochs 2 --mnemonics_steps 1 --mnemonics_outer_lr 0.1 "
        "--finetune_epochs 1 --device cpu")  # fmt: skip
FIRST_CLASSES = {"cifar100": 50, "digits": 5, "imagenet_sub": 50, "imagenet": 500}
PLAIN = {"exemplars": "herding", "weight_transfer": False, "finetune_epochs": 0}
BLUE, ORANGE, GREEN, GREY = (0, 114, 178), (213, 94, 0), (0, 158, 115), (154, 161, 169)  # curves, and for comparison
FOLDER = tempfile.TemporaryDirectory(prefix="runs_of_tests_")  # removed at the end


@functools.cache
def tiny_run(exemplars: str) -> Path:
    """The folder of a finished run on digits, made once; only to be read."""
    folder = Path(FOLDER.name) / exemplars
    algorithm.run(parse_args(f"{TINY} --exemplars {exemplars} --out {folder}".split()))
    return folder


def make_results(seed=1, average=60.0, forgetting=20.0, last=50.0, finished=None, **settings):
    """Results with the paper's settings, except those given. The classifier that is not the headline is far off."""
    given = {"dataset": "cifar100", "nb_phases": 5, "mnemonics_preset": "paper", "last_batch": "keep"} | settings
    user = ExperimentConfig(random_seed=seed, **given)
    config = dataclasses.asdict(resolved(user, is_bound(vars(user))))
    first, phases = FIRST_CLASSES[config["dataset"]], config["nb_phases"] + 1
    headline, other = ("nme", "cnn") if config["baseline"] == "icarl" else ("cnn", "nme")
    return {
        "config": config,
        "environment": {"device": "cpu", "threads": 1, "cpu_count": 2, "torch": "2", "commit": "0123456789ab"},
        "class_order": [0, 1],
        "class_order_sha256": "ab",
        "headline": headline,
        "phases": [
            {
                "phase": i,
                "classes_seen": first + i * first // config["nb_phases"],
                "train_images": {"new": 500 * first, "old": 0},
                "exemplars_per_class": {"min": 20, "max": 20},
                "exemplar_bytes": 1024,
                "accuracy": {headline: average - i, other: 1.0},
                "phase0_accuracy": {headline: average - 2 * i, other: 1.0},
                "accuracy_by_phase_of_origin": {name: [50.0] * (i + 1) for name in ("cnn", "nme")},
                "seconds": {"train": 1.5, "exemplars": 0.5, "evaluate": 0.25},
                "peak_memory_bytes": 1,
            }
            for i in range(phases)
        ][:finished],
        "summary": {
            "average_accuracy": {headline: average, other: 1.0},
            "forgetting": {headline: forgetting, other: 1.0},
            "last_accuracy": {headline: last, other: 1.0},
        },
    }


def written(path: Path, content) -> Path:
    """A file with this text, or this value as JSON, in folders that it may need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def body(text: str) -> list[list[str]]:
    """The rows below the header of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def pixels(path: Path) -> np.ndarray:
    """uint8 [h, w, 3] of a PNG."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(picture: np.ndarray, colour, near: int = 0) -> int:
    """How many pixels have this colour, up to `near` grey levels."""
    return int((np.abs(picture - np.round(colour)).max(axis=2) <= near).sum())
