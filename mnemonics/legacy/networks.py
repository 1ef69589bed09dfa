"""Fills our networks from records of the authors' (`checkpoints.py`).

What a record says is compared with what our network computes, part by part. Whatever ours cannot express, such as a
bias, another stride or another order of layers, is refused: a network that is silently a little different would give
numbers that look right.
"""

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mnemonics.data.pickles import PickleError, described
from mnemonics.experiment.stored import Loaded
from mnemonics.legacy.checkpoints import ModuleRecord, module_of, reading
from mnemonics.models import resnet_cifar, resnet_imagenet, restore_network
from mnemonics.models.layers import CosineLinear, ScaledConv2d, SplitCosineLinear
from mnemonics.models.resnet_cifar import BasicBlock


class Family(NamedTuple):
    """What the classes of one of the authors' source files have in common."""

    depths: dict[str, int]  # our name -> blocks per stage
    image_size: int  # height and width in pixels that the authors' pooling is made for
    layers: dict[str, tuple[str, dict[str, Any]]]  # those that ours has no module for -> class and attributes


SAME = ("stride", "padding", "dilation", "groups", "padding_mode", "eps")  # have to be equal, where ours has them
LAYERS = {kind: kind.__name__ for kind in (nn.Conv2d, nn.BatchNorm2d, CosineLinear, SplitCosineLinear)}
LAYERS |= {ScaledConv2d: "Conv2dMtl"}  # our class -> theirs
PARTS = {  # as `Family.layers`, wherever they are in a network
    "relu": ("ReLU", {}),
    **dict.fromkeys(("fc1", "fc2"), ("CosineLinear", {})),
    **dict.fromkeys(("layer1", "layer2", "layer3", "layer4", "downsample"), ("Sequential", {})),
}
MAX_POOLING = ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False})
POOLING = {size: ("AvgPool2d", {"kernel_size": size, "padding": 0}) for size in (7, 8)}
SMALL = Family(resnet_cifar.DEPTHS, 32, {"avgpool": POOLING[8]})
LARGE = Family(resnet_imagenet.DEPTHS, 224, {"maxpool": MAX_POOLING, "avgpool": POOLING[7]})
NETWORKS = {
    **dict.fromkeys(("models.modified_resnet_cifar.ResNet", "models.modified_resnetmtl_cifar.ResNetMtl"), SMALL),
    **dict.fromkeys(("models.modified_resnet.ResNet", "models.modified_resnetmtl.ResNetMtl"), LARGE),
}
MOST_PARTS = 1000  # of a network
OUR_NAMES = {"downsample": "shortcut", "mtl_weight": "factor", "fc.fc1.": "classifier.old_",
             "fc.fc2.": "classifier.new_", "fc.": "classifier."}  # fmt: skip


def read_network(path: Path) -> Loaded:
    """Our network with the weights of a file of the authors' code, on the CPU. There are no exemplars with it.

    Raises:
        UsageError: as `reading`, and for a network that ours cannot express.
    """
    return reading(path, lambda data: network_of(module_of(data)))


def network_of(record: ModuleRecord) -> Loaded:
    """Raises PickleError for a network that ours cannot express."""
    if record.class_name not in NETWORKS:
        raise PickleError(f"holds a {record.class_name}, known are {', '.join(NETWORKS)}")
    family = NETWORKS[record.class_name]
    parts = dict(itertools.islice(record.parts(), MOST_PARTS))  # a crafted file can have a module hold itself
    depth = len(record.children["layer1"].children)
    name = next((name for name, known in family.depths.items() if known == depth), None)
    if name is None:
        raise PickleError(f"its stages have {depth} blocks, known are {', '.join(map(str, family.depths.values()))}")
    theirs = {path + key: value for path, part in parts.items() for key, value in part.tensors.items()}
    weights = {our_name(key, depth): value for key, value in theirs.items()}
    if len(weights) < len(theirs):
        raise PickleError("the network has two tensors that would be one of ours")
    try:
        model = restore_network(name, weights, torch.device("cpu"))
    except (KeyError, RuntimeError) as error:
        raise PickleError(f"the weights do not fit {name}: {' '.join(str(error).split())[:300]}") from error
    if model.classifier.weight.shape[1] != model.channels[-1]:
        raise PickleError(f"the classifier is for {model.classifier.weight.shape[1]} features, not as in {name}")
    absent = {"relu", *family.layers} - record.children.keys()
    if absent:
        raise PickleError(f"the network has no {' and no '.join(sorted(absent))}")
    ours = {f"{path}.": module for path, module in model.named_modules()}
    for path, part in parts.items():
        compare(path, part, *counterpart(path, ours.get(our_name(path, depth)), family))
    return Loaded(model, name, None, family.image_size)


def our_name(path: str, depth: int) -> str:
    """The name of a part or a tensor in our networks, which count the blocks of all stages, `depth` each, in one."""
    block = re.match("layer([1-4])[.]([0-9])[.]", path)
    if block and int(block[2]) < depth:
        path = f"blocks.{(int(block[1]) - 1) * depth + int(block[2])}.{path[block.end() :]}"
    for theirs, ours in OUR_NAMES.items():
        path = path.replace(theirs, ours)
    return path


def counterpart(path: str, ours: nn.Module | None, family: Family) -> tuple[str, dict[str, Any]]:
    """Class and attributes that a part of theirs must have to compute what `ours` does."""
    if isinstance(ours, BasicBlock):
        return "BasicBlock", {"last": not ours.final_relu}
    if type(ours) in LAYERS:
        return LAYERS[type(ours)], {name: getattr(ours, name) for name in SAME if hasattr(ours, name)}
    return ({"": ("ResNet", {})} | family.layers | PARTS).get(path.split(".")[-2] if path else "", ("", {}))


def compare(path: str, part: ModuleRecord, kind: str, attributes: dict[str, Any]) -> None:
    """Raises PickleError for a part of another class, with a hook, or with other attributes. Those that it lacks count
    as equal, because older versions of PyTorch had fewer."""
    found = part.class_name.split(".")[-1]
    if found != kind and not (found == f"{kind}Mtl" and kind in ("ResNet", "BasicBlock")):
        raise PickleError(f"{described(path)} is a {found}, known is {kind or 'no such part'}")
    if any(value for key, value in part.state.items() if key.endswith("_hooks")):
        raise PickleError(f"{path or 'the network'} has hooks, which are not run here")
    for key, value in attributes.items():
        if part.state.get(key, value) != value:
            raise PickleError(f"{path}{key} is {described(part.state[key])}, ours is {described(value)}")
