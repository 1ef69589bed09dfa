"""Fills our networks from records of the authors' (`legacy.py`).

What a record says is compared with what our network computes, part by part. Whatever ours cannot express, such as a
bias, another stride or another order of layers, is refused: a network that is silently a little different would give
numbers that look right.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnemonics.data.pickles import described
from mnemonics.engine.errors import UsageError
from mnemonics.legacy.checkpoints import read_module
from mnemonics.legacy.records import LegacyError, ModuleRecord
from mnemonics.models import make_network
from mnemonics.models.layers import CosineLinear, ScaledConv2d, SplitCosineLinear, use_weight_transfer
from mnemonics.models.resnet_cifar import DEPTHS as SMALL_DEPTHS
from mnemonics.models.resnet_imagenet import DEPTHS as LARGE_DEPTHS


class LegacyNetwork(NamedTuple):
    """One of our networks with the weights of a file, on the CPU."""

    name: str  # what --network takes
    model: nn.Module
    image_size: int  # height and width in pixels that the authors' pooling is made for


class Family(NamedTuple):
    """What the classes of one of the authors' source files have in common."""

    depths: dict[str, int]  # our name -> blocks per stage
    stages: int
    reduction: int  # how many pixels become one before the pooling


SMALL, LARGE = Family(SMALL_DEPTHS, 3, 4), Family(LARGE_DEPTHS, 4, 32)
NETWORKS = {
    "models.modified_resnet_cifar.ResNet": SMALL,
    "models.modified_resnetmtl_cifar.ResNetMtl": SMALL,
    "models.modified_resnet.ResNet": LARGE,
    "models.modified_resnetmtl.ResNetMtl": LARGE,
}
SCALED = ("utils.conv2d_mtl.Conv2dMtl", "utils.incremental.conv2d_mtl.Conv2dMtl")
FLOATS = (torch.float32, torch.float16)  # those that our float32 networks take up exactly
LAYERS = "torch.nn.modules."


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


@dataclass(frozen=True)
class Part:
    """A record and where it is in the network, e.g. "layer1.0.conv1"."""

    record: ModuleRecord
    path: str = ""

    def child(self, name: str) -> "Part":
        path = f"{self.path}.{name}".lstrip(".")
        record = self.record.children.get(name)
        if record is None:
            raise LegacyError(f"the network has no {path}")
        return Part(record, path)

    def expect(self, classes: Iterable[str], children: Iterable[str] = (), **attributes: Any) -> None:
        """Raises LegacyError if it is of another class, has other children, a hook, or other values of `attributes`
        (those that it does not have count as equal: older versions of PyTorch had fewer)."""
        if self.record.class_name not in classes:
            raise LegacyError(f"{self.path} is a {self.record.class_name}, known is {' or '.join(classes)}")
        present = {name for name, child in self.record.children.items() if child is not None}
        odd = sorted(present ^ set(children))
        if odd:
            raise LegacyError(f"{self.path or 'the network'} has an unknown part, or lacks one: {odd[0]!r}")
        for name, value in self.record.attributes.items():
            if name.endswith("_hooks") and value:
                raise LegacyError(f"{self.path or 'the network'} has hooks, which are not run here")
        for name, wanted in attributes.items():
            value = self.record.attributes.get(name, wanted)
            if pair(value) != pair(wanted):
                raise LegacyError(f"{self.path} has {name} {described(value)}, ours has {described(wanted)}")

    def fill(self, target: Tensor, name: str) -> None:
        """Copy a parameter or buffer into `target`. Raises LegacyError where it is missing or does not fit."""
        value = (self.record.parameters | self.record.buffers).get(name)
        if value is None:
            raise LegacyError(f"{self.path} has no {name}")
        if value.shape != target.shape or (target.is_floating_point() and value.dtype not in FLOATS):
            raise LegacyError(
                f"{self.path}.{name} is {value.dtype} of shape {list(value.shape)}, ours {target.dtype} of shape "
                f"{list(target.shape)}"
            )
        target.copy_(value)


def pair(value: Any) -> Any:
    """Sizes of both axes, where one number stands for both."""
    return (value, value) if isinstance(value, int) else value


@torch.no_grad()
def network_of(record: ModuleRecord) -> LegacyNetwork:
    """Raises LegacyError for a network that ours cannot express."""
    if record.class_name not in NETWORKS:
        raise LegacyError(f"holds a {record.class_name}, known are {', '.join(NETWORKS)}")
    family, root = NETWORKS[record.class_name], Part(record)
    stages = [f"layer{i + 1}" for i in range(family.stages)]
    pooling = ["maxpool"] if family is LARGE else []
    root.expect(NETWORKS, ["conv1", "bn1", "relu", *pooling, *stages, "avgpool", "fc"])
    for name in pooling:
        root.child(name).expect([f"{LAYERS}pooling.MaxPool2d"], kernel_size=3, stride=2, padding=1, dilation=1,
                                ceil_mode=False)  # fmt: skip
    blocks, name = blocks_of(root, stages, family)
    model = make_network(name, 1, torch.device("cpu"))
    if record.class_name.endswith("Mtl"):
        use_weight_transfer(model)
    fill_conv(model.conv1, root.child("conv1"))
    fill_norm(model.bn1, root.child("bn1"))
    root.child("relu").expect([f"{LAYERS}activation.ReLU"])
    for block, part in zip(model.blocks, blocks, strict=True):
        fill_block(block, part, record.class_name.replace(".ResNet", ".BasicBlock"))
    model.classifier = classifier_of(root.child("fc"), model.num_features)
    return LegacyNetwork(name, model, family.reduction * pooled_size(root.child("avgpool")))


def blocks_of(root: Part, stages: list[str], family: Family) -> tuple[list[Part], str]:
    """The basic blocks in order, and our name of the network that has as many in each stage."""
    sizes = [len(root.child(stage).record.children) for stage in stages]
    names = [name for name, depth in family.depths.items() if sizes == [depth] * family.stages]
    if not names:
        known = ", ".join(f"{depth} ({name})" for name, depth in family.depths.items())
        raise LegacyError(
            f"the stages have {sizes} blocks; known are {family.stages} stages with equally many: {known}"
        )
    for stage, size in zip(stages, sizes, strict=True):
        root.child(stage).expect([f"{LAYERS}container.Sequential"], map(str, range(size)))
    return [
        root.child(stage).child(str(i)) for stage, size in zip(stages, sizes, strict=True) for i in range(size)
    ], names[0]


def pooled_size(part: Part) -> int:
    """Height and width of the feature map that the average pooling at the end turns into one number."""
    part.expect([f"{LAYERS}pooling.AvgPool2d"], padding=0)
    size = pair(part.record.attributes.get("kernel_size"))
    if type(size) is not tuple or len(size) != 2 or size[0] != size[1] or type(size[0]) is not int:
        raise LegacyError(f"{part.path} has kernel_size {described(size)}, known is one number for both axes")
    return size[0]


def fill_block(block: nn.Module, part: Part, class_name: str) -> None:
    shortcut = ["downsample"] if len(block.shortcut) else []
    part.expect([class_name], ["conv1", "bn1", "relu", "conv2", "bn2", *shortcut], last=not block.final_relu)
    part.child("relu").expect([f"{LAYERS}activation.ReLU"])
    for i in "12":
        fill_conv(getattr(block, f"conv{i}"), part.child(f"conv{i}"))
        fill_norm(getattr(block, f"bn{i}"), part.child(f"bn{i}"))
    for name in shortcut:
        part.child(name).expect([f"{LAYERS}container.Sequential"], "01")
        fill_conv(block.shortcut[0], part.child(name).child("0"))
        fill_norm(block.shortcut[1], part.child(name).child("1"))


def fill_conv(conv: nn.Conv2d, part: Part) -> None:
    """Weights and, with weight transfer, factors, which the authors call mtl_weight."""
    scaled = isinstance(conv, ScaledConv2d)
    wanted = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    part.expect(SCALED if scaled else [f"{LAYERS}conv.Conv2d"], **wanted)
    for name in ("bias", "mtl_bias"):
        bias = part.record.parameters.get(name)
        if bias is not None and bias.any():
            raise LegacyError(f"{part.path}.{name} is not zero; our convolutions have no bias")
    part.fill(conv.weight, "weight")
    if scaled:
        part.fill(conv.factor, "mtl_weight")


def fill_norm(bn: nn.BatchNorm2d, part: Part) -> None:
    part.expect([f"{LAYERS}batchnorm.BatchNorm2d"], eps=bn.eps)
    for name, target in bn.state_dict(keep_vars=True).items():
        if name != "num_batches_tracked" or name in part.record.buffers:  # PyTorch 0.4.0 did not count
            part.fill(target, name)


def classifier_of(part: Part, num_features: int) -> nn.Module:
    """The cosine classifier, whole or split into old and new classes."""
    whole, split = (f"models.modified_linear.{name}" for name in ("CosineLinear", "SplitCosineLinear"))
    if part.record.class_name == split:
        part.expect([split], ["fc1", "fc2"])
        halves = part.child("fc1"), part.child("fc2")
        classifier = SplitCosineLinear(num_features, *(class_count(half, num_features) for half in halves))
        for half, weight in zip(halves, (classifier.old_weight, classifier.new_weight), strict=True):
            half.expect([whole])
            half.fill(weight, "weight")
            if (factor(half) != 1).any():
                raise LegacyError(f"{half.path} has a sigma of its own; our halves share one")
    else:
        part.expect([whole, split])
        classifier = CosineLinear(num_features, class_count(part, num_features))
        part.fill(classifier.weight, "weight")
    classifier.sigma.copy_(factor(part))
    return classifier


def factor(part: Part) -> Tensor:
    """sigma [1]; 1 for a classifier without it."""
    sigma = torch.ones(1)
    if part.record.parameters.get("sigma") is not None:
        part.fill(sigma, "sigma")
    return sigma


def class_count(part: Part, num_features: int) -> int:
    weight = part.record.parameters.get("weight")
    if weight is None or weight.dim() != 2 or not len(weight):
        raise LegacyError(f"{part.path} has no class weights")
    if weight.shape[1] != num_features:  # a million rows of nothing would make ours large
        raise LegacyError(f"{part.path}.weight has shape {list(weight.shape)}, ours [classes, {num_features}]")
    return len(weight)
