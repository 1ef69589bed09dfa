"""The installed package works without the checkout."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.sources import load_source

ROOT = Path(__file__).resolve().parents[1]


def test_a_wheel_runs_from_another_folder(tmp_path):
    source, installed, elsewhere = tmp_path / "source", tmp_path / "installed", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "mnemonics", source / "mnemonics", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "pip wheel --quiet --no-deps --no-build-isolation --wheel-dir".split()
    subprocess.run([sys.executable, "-m", *build, tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    flags = "--dataset digits --nb_phases 1 --network resnet8 --epochs 1 --nb_protos 2 --method baseline --device cpu"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", "import atexit, mnemonics, runpy, sys; print(mnemonics.__file__); "
               "atexit.register(lambda: print({'torchvision', 'torch._dynamo'} & set(sys.modules))); "
               "runpy.run_module('mnemonics', run_name='__main__', alter_sys=True)"]  # fmt: skip
    process = subprocess.run(
        [*command, *flags.split(), "--out", "run"], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(str(installed))
    assert process.stdout.endswith("set()\n")  # what takes a second to import, and here is not needed, is not imported
    results = json.loads((elsewhere / "run" / "results.json").read_text())
    assert len(results["phases"]) == 2
    assert "<table>" in (elsewhere / "run" / "report.html").read_text()
    assert results["environment"]["commit"] == "unknown"  # not that of whatever checkout is around


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "0"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_waiting_threads_sleep_unless_asked_otherwise(given, expected):
    """Set before torch is imported, which is when OpenMP reads it."""
    code = """if True:
        import os, sys
        class Finder:
            def find_spec(self, name, *_):
                if name == "torch":
                    print(os.environ.get("GOMP_SPINCOUNT"))
                    os._exit(0)
        sys.meta_path.insert(0, Finder())
        import mnemonics.__main__"""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    process = subprocess.run([sys.executable, "-uc", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.stdout.split() == [expected], process.stderr


NETWORKS = sorted((ROOT / "results" / "checkpoints" / "resnet32_n5").glob("*.pt"))


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_the_committed_networks_are_those_of_the_model_card_and_know_real_images(path, cifar100_mini):
    card = (ROOT / "results" / "checkpoints" / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in card.splitlines() if line.startswith(f"| `{path.name}` |"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in line
    model = torch.hub.load(str(ROOT), "resnet32_cifar100", path.stem, source="local")
    source = load_source(ExperimentConfig(data_dir=str(cifar100_mini)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    with torch.no_grad():
        outputs = model((source.test_images / 255 - mean) / std)
    names = [model.class_names[label] for label in outputs.argmax(1)]
    right = sum(source.class_names[c] == name for c, name in zip(source.test_class_ids, names, strict=True))
    assert 0.35 < right / len(names) < 0.7  # of all test images 42 to 54%
