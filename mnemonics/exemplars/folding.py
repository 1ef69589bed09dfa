"""The parameters of a network in eval mode as one vector, its BatchNorms folded into its convolutions all at once.

`conv_bn` does that layer by layer, each time it is called. Here all BatchNorms lie side by side in the vector, and so
do convolutions whose filters have the same shape: a few operations fold them, however many layers there are.
"""

import itertools

import torch
from torch import Tensor, nn

from mnemonics.exemplars.unroll import Layout, Parameters
from mnemonics.models import CifarResNet, conv_bn_pairs, folded
from mnemonics.models.layers import ScaledConv2d


class FoldedLayout(Layout):
    """Layout of the parameters of a network, from which `unflatten` makes those of the `folded` network."""

    def __init__(self, model: CifarResNet, parameters: Parameters):
        """The `parameters` hold those of all BatchNorms and convolutions."""
        pairs = sorted(conv_bn_pairs(model), key=lambda pair: pair.conv.weight.shape[1:])
        self.groups = [list(group) for _, group in itertools.groupby(pairs, lambda pair: pair.conv.weight.shape[1:])]
        self.mean = torch.cat([pair.bn.running_mean for pair in pairs])
        self.scale = torch.cat([torch.rsqrt(pair.bn.running_var + pair.bn.eps) for pair in pairs])
        norms = [f"{pair.bn_name}.{which}" for which in ("weight", "bias") for pair in pairs]
        names = [*norms, *(pair.learned_name for pair in pairs)]
        self.rest = Layout({name: p for name, p in parameters.items() if name not in names})
        super().__init__({name: parameters[name] for name in (*names, *self.rest.shapes)})
        sizes = [sum(parameters[pair.learned_name].numel() for pair in group) for group in self.groups]
        self.parts = [len(self.mean)] * 2 + [*sizes, sum(self.rest.sizes)]

    def unflatten(self, θ: Tensor) -> Parameters:
        """Gradients flow through them."""
        weight, bias, *learned, rest = θ.split(self.parts)
        scale = weight * self.scale
        bias, result = bias - self.mean * scale, self.rest.unflatten(rest)
        channels = [[len(pair.conv.weight) for pair in group] for group in self.groups]
        scales, biases = (of.split([sum(part) for part in channels]) for of in (scale, bias))
        for group, *parts, of_each in zip(self.groups, learned, scales, biases, channels, strict=True):
            weights, scale, bias = parts
            weights = weights.view(len(scale), *self.shapes[group[0].learned_name][1:]) * scale[:, None, None, None]
            if isinstance(group[0].conv, ScaledConv2d):
                weights = weights * torch.cat([pair.conv.weight for pair in group])
            for pair, weight, shift in zip(group, weights.split(of_each), bias.split(of_each), strict=True):
                result |= {f"{pair.conv_name}.weight": weight, f"{pair.conv_name}.bias": shift}
        return result


def with_layout(model: nn.Module, parameters: Parameters) -> tuple[nn.Module, Layout]:
    """A network in eval mode and a layout of these parameters of `model`, which make the same of images as `model`:
    folded, if `model` is one of this package's and all that is folded is among the parameters."""
    pairs = conv_bn_pairs(model) if isinstance(model, CifarResNet) else []
    needed = {name for pair in pairs for name in (pair.learned_name, f"{pair.bn_name}.weight", f"{pair.bn_name}.bias")}
    if pairs and needed <= parameters.keys():
        return folded(model), FoldedLayout(model, parameters)
    return model, Layout(parameters)
