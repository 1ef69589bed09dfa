"""What README and docs tell to run, and where they point."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mnemonics import __main__
from mnemonics.algorithm import run
from mnemonics.baselines import BASELINES
from mnemonics.config.command_line import build_parser
from mnemonics.data.files import read_images
from mnemonics.data.sources import SOURCES
from mnemonics.exemplars.methods import EXEMPLARS, ExemplarMethod
from mnemonics.experiment.state import CHOICES, parse_args

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")]
TINY = "--nb_phases 1 --network resnet8 --epochs 1 --nb_protos 2 --method baseline --device cpu".split()


def code_of(text, kind="python"):
    """The names that the Python examples of a page define, by example; or the lines of its commands, for "bash"."""
    found, blocks = [], re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    if kind == "bash":
        return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    for code in blocks:
        names = {}
        exec(code, names)
        found.append(names)
    return found


def test_the_library_example_runs_and_does_what_it_says():
    torch.manual_seed(0)
    (names,) = code_of(README)
    model, x, y, start = (names[name] for name in ("model", "x", "y", "start"))

    def accuracy_after_training_on(images):
        parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        for _ in range(20):
            loss = F.cross_entropy(torch.func.functional_call(model, parameters, (images,)), y[start])
            gradient = torch.autograd.grad(loss, list(parameters.values()))
            step = zip(parameters.items(), gradient, strict=True)
            parameters = {name: (p - 0.5 * g).detach().requires_grad_() for (name, p), g in step}
        return (torch.func.functional_call(model, parameters, (x,)).argmax(1) == y).float().mean().item()

    assert torch.equal(names["exemplars"], names["exemplars"].clamp(0, 1))
    assert accuracy_after_training_on(names["exemplars"]) > accuracy_after_training_on(x[start]) + 0.05


def test_the_examples_of_extending_work_together(tmp_path, monkeypatch):
    baseline, method, source = code_of((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    monkeypatch.setitem(BASELINES, "feature-distillation", baseline["FeatureDistillation"])
    monkeypatch.setitem(EXEMPLARS, "confident", ExemplarMethod(method["choose_confident"]))
    monkeypatch.setitem(SOURCES, "stripes", source["load_stripes"])
    flags = "--dataset stripes --baseline feature-distillation --exemplars confident".split()
    results, _ = run(parse_args([*TINY, *flags, "--out", str(tmp_path / "run")]))
    assert [phase["exemplars_per_class"] for phase in results["phases"]] == [{"min": 2, "max": 2}] * 2
    assert results["phases"][-1]["accuracy"]["nme"] > 2 * 10  # twice what guessing gives


def test_exemplars_in_ones_own_training(tmp_path, monkeypatch):
    """The commands of the page, then its Python examples, but that of Avalanche, which tests/adapters runs."""
    page = (ROOT / "docs" / "own_training.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for line in code_of(page, "bash"):
        command = line.removeprefix("python main.py ").removeprefix("python -m mnemonics ")
        assert __main__.main(shlex.split(command)) == 0
    own, stored = code_of(page.split("## In Avalanche")[0])
    right = own["model"](own["x"]).argmax(1) == own["y"]
    assert right[own["y"] < 5].float().mean() > 0.5  # old classes; without a memory about 0.02
    files = sorted((tmp_path / "exemplars").rglob("*.png"), key=lambda path: path.name)
    assert torch.equal(read_images(files, 16, None), stored["images"])
    assert [int(path.parent.name) for path in files] == stored["class_ids"].tolist()
    folder = json.loads((tmp_path / "runs" / "exemplars" / "results.json").read_text())
    assert folder["data"]["class_names"] == list("0123456789")
    assert sum(folder["data"]["train_images"] + folder["data"]["test_images"]) == len(stored["images"])


def test_every_flag_that_a_page_names_exists():
    flags = {option for action in build_parser(CHOICES)._actions for option in action.option_strings}
    commands = [line for page in PAGES for line in re.findall(r"python main\.py[^\n`|]*", page.read_text("utf-8"))]
    assert len(commands) >= 5
    for command in commands:
        assert set(re.findall(r"--[a-z][a-zA-Z_0-9-]*", command.split("#")[0])) <= flags, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_readme_is_short():
    assert README.count("\n") <= 160
