"""The networks of results/checkpoints for `torch.hub.load`."""

from pathlib import Path

import torch
from torch import nn

from mnemonics.experiment.stored import read_state
from mnemonics.models import restore_network

dependencies = ["torch", "torchvision", "numpy", "PIL", "sklearn", "tqdm"]


def resnet32_cifar100(row: str = "lucir_herding") -> nn.Module:
    """ResNet-32 after the last of five phases of CIFAR-100, for evaluation.

    Args:
        row: the name of a file in results/checkpoints/resnet32_n5; the model card there says what each of them is.
    Returns:
        A module that maps images float [n, 3, 32, 32], normalised by its `mean` and `std` (of values from 0 to 1, per
        channel), to logits float [n, 100], whose classes are its `class_names`, in this order.
    Raises:
        UsageError: where there is no such file.
    """
    path = Path(__file__).parent / "results" / "checkpoints" / "resnet32_n5" / f"{row}.pt"
    state = read_state(path, torch.device("cpu"))
    model, data = restore_network("resnet32", state["model"], torch.device("cpu")).eval(), state["data"]
    model.mean, model.std = data["mean"], data["std"]
    model.class_names = [data["class_names"][class_id] for class_id in state["class_order"]]
    return model
