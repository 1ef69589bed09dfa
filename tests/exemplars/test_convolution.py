"""The convolution of the exemplar level: values and first derivatives are PyTorch's, second ones are right."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from mnemonics.exemplars.convolution import TwiceDifferentiable
from mnemonics.models.layers import ScaledConv2d


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 1, 1, 1), (2, 1, 1, 1), ((2, 1), (0, 2), (2, 1), 1), (1, 0, 1, 2), (2, 1, 2, 4), ((2,), "valid", 1, 1)],
)
def test_first_and_second_derivatives(stride, padding, dilation, groups, bias):
    torch.manual_seed(0)
    arguments = [normal(2, 4, 6, 5), normal(4, 4 // groups, 3, 3), *([normal(4)] if bias else [])]

    def ours(x, weight, bias=None):
        with TwiceDifferentiable():
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    bias = arguments[2] if bias else None
    assert torch.equal(ours(*arguments), F.conv2d(*arguments[:2], bias, stride, padding, dilation, groups))
    assert gradcheck(ours, arguments)
    assert gradgradcheck(ours, arguments)


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 3), nn.Conv3d(2, 3, 2), ScaledConv2d.of(nn.Conv2d(2, 3, 3))])
def test_layers_use_it(layer):
    x = torch.randn(2, 2, *[4] * (layer.weight.dim() - 2))
    with TwiceDifferentiable():
        y = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert type(y.grad_fn).__name__ == "ConvolutionBackward"  # PyTorch's has a 0 at its end
    assert torch.equal(y, layer(x))
