"""Fills our networks from records of the authors' (`records.py`).

What a record says is compared with what our network computes, part by part. Whatever ours cannot express, such as a
bias, another stride or another order of layers, is refused: a network that is silently a little different would give
numbers that look right.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnemonics.data.pickles import described
from mnemonics.engine.errors import UsageError
from mnemonics.legacy.checkpoints import read_module
from mnemonics.legacy.records import LegacyError, ModuleRecord
from mnemonics.models import restore_network
from mnemonics.models.layers import CosineLinear, ScaledConv2d, SplitCosineLinear
from mnemonics.models.resnet_cifar import CHANNELS as SMALL_CHANNELS
from mnemonics.models.resnet_cifar import DEPTHS as SMALL_DEPTHS
from mnemonics.models.resnet_cifar import BasicBlock
from mnemonics.models.resnet_imagenet import CHANNELS as LARGE_CHANNELS
from mnemonics.models.resnet_imagenet import DEPTHS as LARGE_DEPTHS


class LegacyNetwork(NamedTuple):
    """One of our networks with the weights of a file, on the CPU."""

    name: str  # what --network takes
    model: nn.Module
    image_size: int  # height and width in pixels that the authors' pooling is made for


class Family(NamedTuple):
    """What the classes of one of the authors' source files have in common."""

    depths: dict[str, int]  # our name -> blocks per stage
    channels: tuple[int, ...]  # of each stage
    reduction: int  # how many pixels become one before the pooling at the end


SMALL, LARGE = Family(SMALL_DEPTHS, SMALL_CHANNELS, 4), Family(LARGE_DEPTHS, LARGE_CHANNELS, 32)
NETWORKS = {
    "models.modified_resnet_cifar.ResNet": SMALL,
    "models.modified_resnetmtl_cifar.ResNetMtl": SMALL,
    "models.modified_resnet.ResNet": LARGE,
    "models.modified_resnetmtl.ResNetMtl": LARGE,
}
BLOCKS = tuple(name.replace(".ResNet", ".BasicBlock") for name in NETWORKS)
LAYERS, HEADS = "torch.nn.modules.", "models.modified_linear."
CONVOLUTION = ("stride", "padding", "dilation", "groups", "padding_mode")
WITH_WEIGHTS = {  # our class -> theirs, and the attributes that have to be equal
    nn.Conv2d: ((f"{LAYERS}conv.Conv2d",), CONVOLUTION),
    ScaledConv2d: (("utils.conv2d_mtl.Conv2dMtl", "utils.incremental.conv2d_mtl.Conv2dMtl"), CONVOLUTION),
    nn.BatchNorm2d: ((f"{LAYERS}batchnorm.BatchNorm2d",), ("eps",)),
    CosineLinear: ((f"{HEADS}CosineLinear",), ()),
    SplitCosineLinear: ((f"{HEADS}SplitCosineLinear",), ()),
}
MAX_POOLING = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False}
WITHOUT_WEIGHTS = {  # last name in the path -> class and attributes
    "": (tuple(NETWORKS), {}),
    "relu": ((f"{LAYERS}activation.ReLU",), {}),
    "maxpool": ((f"{LAYERS}pooling.MaxPool2d",), MAX_POOLING),
    "avgpool": ((f"{LAYERS}pooling.AvgPool2d",), {"padding": 0}),
    **dict.fromkeys(("fc1", "fc2"), ((f"{HEADS}CosineLinear",), {})),
    **dict.fromkeys(("layer1", "layer2", "layer3", "layer4", "downsample"), ((f"{LAYERS}container.Sequential",), {})),
}
OUR_NAMES = {"downsample": "shortcut", "mtl_weight": "factor", "fc.fc1.": "classifier.old_",
             "fc.fc2.": "classifier.new_", "fc.": "classifier."}  # fmt: skip


def read_network(path: str | Path) -> LegacyNetwork:
    """Our network with the weights of a file of the authors' code.

    Raises:
        UsageError: as `read_module`, and for a network that ours cannot express.
    """
    record = read_module(path)
    try:
        return network_of(record)
    except LegacyError as error:
        raise UsageError(f"{path}: {error}") from error


def network_of(record: ModuleRecord) -> LegacyNetwork:
    """Raises LegacyError for a network that ours cannot express."""
    if record.class_name not in NETWORKS:
        raise LegacyError(f"holds a {record.class_name}, known are {', '.join(NETWORKS)}")
    family = NETWORKS[record.class_name]
    name = name_of(record, family)
    parts, depth = record.parts(), family.depths[name]
    theirs = {f"{path}.{key}": value for path, part in parts.items() for key, value in weights_of(path, part).items()}
    weights = {our_name(key, depth): value for key, value in theirs.items()}
    if len(weights) < len(theirs):
        raise LegacyError("the network has two tensors that would be one of ours")
    weights.setdefault("classifier.sigma", torch.ones(1))
    for key, value in weights.items():
        if re.fullmatch("classifier.*weight", key) and value.shape[1:] != family.channels[-1:]:
            raise LegacyError(f"{key} has shape {list(value.shape)}, ours [classes, {family.channels[-1]}]")
    try:
        model = restore_network(name, weights, torch.device("cpu"))
    except (KeyError, RuntimeError) as error:
        raise LegacyError(f"the weights do not fit {name}: {' '.join(str(error).split())[:300]}") from error
    ours = dict(model.named_modules())
    for path, part in parts.items():
        compare(path, part, ours.get(our_name(f"{path}.", depth)[:-1]))
    return LegacyNetwork(name, model, family.reduction * pooled_size(parts.get("avgpool", ModuleRecord())))


def name_of(record: ModuleRecord, family: Family) -> str:
    """Our name of the network that has as many basic blocks in each stage."""
    stages = [record.children.get(f"layer{i + 1}", ModuleRecord()) for i in range(len(family.channels))]
    for name, depth in family.depths.items():
        if all(list(stage.children) == [str(i) for i in range(depth)] for stage in stages):
            return name
    sizes, known = [len(stage.children) for stage in stages], ", ".join(map(str, family.depths.values()))
    raise LegacyError(f"the stages have {sizes} blocks; known are {len(stages)} stages with {known} each")


def our_name(path: str, depth: int) -> str:
    """The name of a part or a tensor in our networks, which count the blocks of all stages, `depth` each, in one."""
    block = re.match("layer([0-9])[.]([0-9])", path)
    if block:
        path = f"blocks.{(int(block[1]) - 1) * depth + int(block[2])}{path[block.end() :]}"
    for theirs, ours in OUR_NAMES.items():
        path = path.replace(theirs, ours)
    return path


def weights_of(path: str, part: ModuleRecord) -> dict[str, Tensor]:
    """Parameters and buffers, without those that ours lack and that change nothing."""
    weights = part.tensors
    neutral = {"sigma": 1} if path in ("fc.fc1", "fc.fc2") else {"bias": 0, "mtl_bias": 0}
    if "BatchNorm2d" in part.class_name:
        neutral = {}
    for key in neutral.keys() & weights.keys():
        if (weights.pop(key) != neutral[key]).any():
            raise LegacyError(f"{path}.{key} is not {neutral[key]}, as in ours")
    for key, value in weights.items():
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float16):
            raise LegacyError(f"{path}.{key} is {value.dtype}, ours is float32")
    return weights


def compare(path: str, part: ModuleRecord, ours: nn.Module | None) -> None:
    """Raises LegacyError for a part that is not what ours is: of another class, unknown, with a hook, or with other
    attributes. Those that it lacks count as equal, because older versions of PyTorch had fewer."""
    name = path.rpartition(".")[2]
    if type(ours) in WITH_WEIGHTS:
        classes, names = WITH_WEIGHTS[type(ours)]
        attributes = {name: getattr(ours, name) for name in names}
    elif isinstance(ours, BasicBlock):
        classes, attributes = BLOCKS, {"last": not ours.final_relu}
    elif name in WITHOUT_WEIGHTS:
        classes, attributes = WITHOUT_WEIGHTS[name]
    else:
        raise LegacyError(f"the network has an unknown part: {described(path)}")
    if part.class_name not in classes:
        raise LegacyError(f"{path} is a {part.class_name}, known is {' or '.join(classes)}")
    if any(value for key, value in part.state.items() if key.endswith("_hooks")):
        raise LegacyError(f"{path or 'the network'} has hooks, which are not run here")
    for key, expected in attributes.items():
        value = part.state.get(key, expected)
        if pair(value) != pair(expected):
            raise LegacyError(f"{path} has {key} {described(value)}, ours has {described(expected)}")


def pooled_size(avgpool: ModuleRecord) -> int:
    """Height and width of the feature map that the average pooling at the end turns into one number."""
    size = pair(avgpool.state.get("kernel_size"))
    if type(size) is not tuple or len(size) != 2 or size[0] != size[1] or type(size[0]) is not int:
        raise LegacyError(f"avgpool has kernel_size {described(size)}, known is one number for both axes")
    return size[0]


def pair(value: Any) -> Any:
    """Sizes of both axes, where one number stands for both."""
    return (value, value) if isinstance(value, int) else value
