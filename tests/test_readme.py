"""What README tells a newcomer to run."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F

from mnemonics.config.command_line import build_parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs_and_does_what_it_says():
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    model, x, y, start = (names[name] for name in ("model", "x", "y", "start"))

    def accuracy_after_training_on(images):
        parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        for _ in range(20):
            loss = F.cross_entropy(torch.func.functional_call(model, parameters, (images,)), y[start])
            gradient = torch.autograd.grad(loss, list(parameters.values()))
            step = zip(parameters.items(), gradient, strict=True)
            parameters = {name: (p - 0.5 * g).detach().requires_grad_() for (name, p), g in step}
        return (torch.func.functional_call(model, parameters, (x,)).argmax(1) == y).float().mean().item()

    assert accuracy_after_training_on(names["exemplars"]) > accuracy_after_training_on(x[start]) + 0.05


def test_every_flag_that_readme_names_exists():
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    commands = re.findall(r"python main\.py[^\n]*", README)
    assert len(commands) >= 3
    for command in commands:
        used = re.findall(r"--[a-z_A-Z-]+", command.split("#")[0])
        assert set(used) <= flags, command
