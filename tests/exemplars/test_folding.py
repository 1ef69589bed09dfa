"""Folding all BatchNorms at once: the same function of images and of all parameters."""

import pytest
import torch
from torch.func import functional_call

from mnemonics.exemplars.folding import FoldedLayout, with_layout
from mnemonics.exemplars.unroll import Layout
from mnemonics.models import folded, make_network
from mnemonics.models.layers import use_weight_transfer


@pytest.fixture(params=[False, True], ids=["plain", "weight transfer"])
def model(request):
    torch.manual_seed(0)
    model = make_network("resnet20", 4, torch.device("cpu")).double()
    if request.param:
        use_weight_transfer(model)
    model.train()(torch.randn(32, 3, 8, 8).double())  # statistics that are not the initial ones
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def test_outputs_and_gradients_are_those_of_the_network(model):
    parameters, x = {n: p for n, p in model.named_parameters() if p.requires_grad}, torch.randn(3, 3, 8, 8).double()
    network, layout = with_layout(model, parameters)
    θ = layout.flatten(parameters).requires_grad_()
    out, expected = functional_call(network, layout.unflatten(θ), (x,)), model(x)
    gradient = torch.autograd.grad(out.square().sum(), θ)[0]
    reference = torch.autograd.grad(expected.square().sum(), list(parameters.values()))
    assert isinstance(layout, FoldedLayout)
    assert torch.allclose(out, expected, rtol=1e-10)
    assert torch.allclose(gradient, layout.flatten(dict(zip(parameters, reference, strict=True))), rtol=1e-10)


def test_a_folded_copy_computes_the_same_bits(model):
    x = torch.randn(3, 3, 8, 8).double()
    copy = folded(model)
    assert torch.equal(copy(x), model(x))
    assert not any("bn" in name for name in copy.state_dict())
    assert not any(p.requires_grad for p in copy.parameters())


def test_where_not_all_that_is_folded_is_a_parameter_nothing_is(model):
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith("bn1")}
    network, layout = with_layout(model, parameters)
    assert network is model
    assert type(layout) is Layout
