"""Stand-ins for the modules of the authors' code: their names, attributes and function, written for these tests."""

import contextlib
import sys
import types
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F


class CosineLinear(nn.Module):
    def __init__(self, d, n, sigma=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, d))
        self.register_parameter("sigma", nn.Parameter(torch.rand(1) + 1) if sigma else None)

    def forward(self, x):
        out = F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T
        return out if self.sigma is None else out * self.sigma


class SplitCosineLinear(nn.Module):
    def __init__(self, d, old, new):
        super().__init__()
        self.fc1, self.fc2 = CosineLinear(d, old, False), CosineLinear(d, new, False)
        self.sigma = nn.Parameter(torch.rand(1) + 1)

    def forward(self, x):
        return torch.cat([self.fc1(x), self.fc2(x)], 1) * self.sigma


class Conv2dMtl(nn.Conv2d):
    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        self.mtl_weight = nn.Parameter(torch.rand(self.out_channels, self.in_channels, 1, 1) + 0.5)
        self.register_parameter("mtl_bias", None)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mtl_weight, None, self.stride, self.padding)


class BasicBlock(nn.Module):
    def __init__(self, conv, a, b, stride, last):
        super().__init__()
        self.conv1, self.bn1 = conv(a, b, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = conv(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.relu, self.downsample, self.stride, self.last = nn.ReLU(inplace=True), None, stride, last
        if stride != 1:
            self.downsample = nn.Sequential(conv(a, b, 1, stride=stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out = out + (x if self.downsample is None else self.downsample(x))
        return out if self.last else self.relu(out)


class ResNet(nn.Module):
    def __init__(self, conv, block, is_large, depth, classes):
        super().__init__()
        channels = [64, 128, 256, 512] if is_large else [16, 32, 64]
        stem = (7, 2, 3) if is_large else (3, 1, 1)  # size, stride, padding
        self.conv1, self.bn1 = conv(3, channels[0], *stem, bias=False), nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        if is_large:
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for i, (before, now) in enumerate(zip(channels[:1] + channels, channels, strict=False)):
            last = [i == len(channels) - 1 and j == depth - 1 for j in range(depth)]
            first = block(conv, before, now, 2 if i else 1, last[0])
            blocks = [first, *(block(conv, now, now, 1, is_last) for is_last in last[1:])]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AvgPool2d(7 if is_large else 8, stride=1)
        self.fc = CosineLinear(channels[-1], classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for name, layer in self.named_children():
            x = layer(x) if name.startswith(("maxpool", "layer")) else x
        return self.fc(self.avgpool(x).flatten(1))


@contextlib.contextmanager
def stand_ins():
    """Within it there are the authors' modules; afterwards nothing of them is left."""
    homes = {"models.modified_linear": [CosineLinear, SplitCosineLinear], "utils.conv2d_mtl": [Conv2dMtl]}
    for kind, end in (("resnet", ""), ("resnet_cifar", ""), ("resnetmtl", "Mtl"), ("resnetmtl_cifar", "Mtl")):
        homes[f"models.modified_{kind}"] = [type(f"{c.__name__}{end}", (c,), {}) for c in (BasicBlock, ResNet)]
    modules = {"models": types.ModuleType("models"), "utils": types.ModuleType("utils")}
    for name, classes in homes.items():
        modules[name] = types.ModuleType(name)
        for c in classes:
            c.__module__ = name
            setattr(modules[name], c.__name__, c)
    source = mock.patch(
        "torch.serialization.get_source_lines_and_file", lambda c: ([f"source of {c.__name__}"], 0, "x")
    )
    with source, mock.patch.dict(sys.modules, modules):
        yield


def authors_modules():
    return [name for name in sys.modules if name.split(".")[0] in ("models", "utils")]


def make(kind, depth, classes, new=0):
    """A stand-in network in eval mode with nothing left at a neutral value; `new` > 0: a split head."""
    block, net = (value for value in vars(sys.modules[f"models.modified_{kind}"]).values() if isinstance(value, type))
    network = net(Conv2dMtl if "mtl" in kind else nn.Conv2d, block, "cifar" not in kind, depth, classes)
    if new:
        network.fc = SplitCosineLinear(network.fc.weight.shape[1], classes, new)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (part.running_var, part.weight.data):
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def save(module, path, old_format):
    torch.save(module, path, _use_new_zipfile_serialization=not old_format)
    return path
