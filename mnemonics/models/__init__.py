"""Networks by the name that --network takes."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnemonics.models import resnet_cifar, resnet_imagenet
from mnemonics.models.layers import BiasCorrected, SplitCosineLinear, use_weight_transfer
from mnemonics.models.resnet_cifar import CifarResNet
from mnemonics.models.resnet_imagenet import ImageNetResNet

NETWORKS: dict[str, Callable[[int], nn.Module]] = {  # name -> function of the number of classes
    **{name: functools.partial(CifarResNet, depth) for name, depth in resnet_cifar.DEPTHS.items()},
    **{name: functools.partial(ImageNetResNet, depth) for name, depth in resnet_imagenet.DEPTHS.items()},
}


def make_network(name: str, num_classes: int, device: torch.device) -> nn.Module:
    """A new network with random weights, channels-last (about a third faster on a CPU), on `device`."""
    return NETWORKS[name](num_classes).to(device, memory_format=torch.channels_last)


def restore_network(name: str, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The network `name` with the weights of a checkpoint, whose keys say which classifier it had and whether it had
    weight transfer."""
    corrected = "classifier.scale" in weights
    prefix = "classifier.classifier." if corrected else "classifier."
    split = f"{prefix}old_weight" in weights
    model = make_network(name, len(weights[prefix + ("old_weight" if split else "weight")]), device)
    if split:
        old, new = weights[f"{prefix}old_weight"], weights[f"{prefix}new_weight"]
        model.classifier = SplitCosineLinear(old.shape[1], len(old), len(new)).to(device)
    if corrected:
        model.classifier = BiasCorrected(model.classifier)
    if any(key.endswith(".factor") for key in weights):
        use_weight_transfer(model)
    model.load_state_dict(weights)
    return model
