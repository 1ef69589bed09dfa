"""The unrolled gradient against the plain graph, finite differences and torch.optim."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mnemonics.data.augment import crop_and_mirror, draw_crops
from mnemonics.exemplars.unroll import plain_unrolled_gradient, unroll, unrolled_gradient
from mnemonics.models.resnet_cifar import resnet_cifar

SIZE = 8


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16), nn.Tanh(), nn.Linear(16, 4))


def resnet_with_statistics():
    """ResNet-8 in eval mode whose BatchNorm statistics are not the initial ones."""
    model = resnet_cifar("resnet8", 4).double()
    model.train()(torch.randn(32, 3, SIZE, SIZE, dtype=torch.float64))
    return model


class Problem:
    """A network, exemplars, validation images and fixed minibatches and crops per step, all float64."""

    def __init__(self, network, augmented=False, seed=0):
        torch.manual_seed(seed)
        self.model = network().double().eval()
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.x, self.y = torch.randn(12, 3, SIZE, SIZE, dtype=torch.float64), torch.arange(12) % 4
        self.xv, self.yv = torch.randn(9, 3, SIZE, SIZE, dtype=torch.float64), torch.arange(9) % 4
        draws = torch.Generator().manual_seed(seed)
        self.batches = [torch.randperm(12, generator=draws)[:5] for _ in range(10)]
        self.crops = [draw_crops(5, 2, True, draws) for _ in range(10)] if augmented else None

    def step_loss(self, parameters, x, k):
        images = x[self.batches[k]]
        if self.crops:
            images = crop_and_mirror(images, self.crops[k], 2, fill=0.3)
        return F.cross_entropy(functional_call(self.model, parameters, (images,)), self.y[self.batches[k]])

    def validation_loss(self, parameters):
        return F.cross_entropy(functional_call(self.model, parameters, (self.xv,)), self.yv)

    def plain(self, rates, momentum):
        return plain_unrolled_gradient(self.step_loss, self.validation_loss, self.parameters, self.x, rates, momentum)

    def ours(self, rates, momentum):
        return unrolled_gradient(self.step_loss, self.validation_loss, self.parameters, self.x, rates, momentum)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("network", [mlp, resnet_with_statistics])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("K", [1, 2, 7])
def test_equals_the_plain_unrolled_graph(network, momentum, augmented, K):
    problem, rates = Problem(network, augmented), [0.2 / (k + 1) for k in range(K)]
    plain, ours = problem.plain(rates, momentum), problem.ours(rates, momentum)
    assert plain.inputs.norm() > 1e-6
    assert relative_error(ours.inputs, plain.inputs) < 1e-10
    assert relative_error(ours.rates, plain.rates) < 1e-10
    assert relative_error(ours.loss, plain.loss) < 1e-10
    assert all(relative_error(ours.parameters[name], p) < 1e-10 for name, p in plain.parameters.items())


def test_the_second_order_terms_matter():
    """Otherwise the tests above could not tell an exact gradient from a first-order one."""
    problem, rates = Problem(mlp), [0.5] * 5
    exact = problem.ours(rates, 0.0).inputs
    last_only = problem.ours([0.0] * 4 + [0.5], 0.0).inputs
    assert relative_error(last_only, exact) > 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_finite_differences(momentum):
    problem, rates = Problem(mlp), [0.3] * 4
    ours = problem.ours(rates, momentum)
    direction = torch.randn_like(problem.x)
    start, step = problem.x, 1e-5

    def loss_at(x, rates):
        points, _ = unroll(problem.step_loss, problem.parameters, x, rates, momentum)
        return problem.validation_loss(points[-1]).item()

    slope = (loss_at(start + step * direction, rates) - loss_at(start - step * direction, rates)) / (2 * step)
    assert slope == pytest.approx((ours.inputs * direction).sum().item(), rel=1e-6)
    for k in range(4):
        up, down = list(rates), list(rates)
        up[k], down[k] = rates[k] + step, rates[k] - step
        assert (loss_at(start, up) - loss_at(start, down)) / (2 * step) == pytest.approx(ours.rates[k].item(), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_steps_are_those_of_torch_sgd(momentum):
    problem, rates = Problem(resnet_with_statistics), [0.1] * 6
    points, _ = unroll(problem.step_loss, problem.parameters, problem.x, rates, momentum)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=momentum)
    for k in range(6):
        optimizer.zero_grad()
        problem.step_loss(dict(problem.model.named_parameters()), problem.x, k).backward()
        optimizer.step()
    for name, p in problem.model.named_parameters():
        assert relative_error(points[-1][name], p.detach()) < 1e-12


def test_a_parameter_subset_leaves_the_others_where_they_are():
    problem = Problem(resnet_with_statistics)
    problem.parameters = {n: p for n, p in problem.parameters.items() if n.startswith("classifier.")}
    ours = problem.ours([0.5] * 3, 0.0)
    assert set(ours.parameters) == {"classifier.weight", "classifier.sigma"}
    assert relative_error(ours.inputs, problem.plain([0.5] * 3, 0.0).inputs) < 1e-10


def test_images_in_no_minibatch_get_no_gradient_and_arguments_stay_as_they_are():
    problem = Problem(mlp)
    before = {name: p.clone() for name, p in problem.parameters.items()}
    result = problem.ours([0.2], 0.0)
    unused = [i for i in range(12) if i not in problem.batches[0]]
    assert not result.inputs[unused].any()
    assert result.inputs[problem.batches[0]].flatten(1).any(1).all()
    assert all(torch.equal(before[name], p) for name, p in problem.parameters.items())
    assert not problem.x.requires_grad
    assert all(p.grad is None for p in problem.model.parameters())


def test_memory_holds_one_graph_at_a_time():
    """Graph nodes alive during the reverse pass: as many in the last step as in the first, not growing with K."""
    problem, alive = Problem(mlp), []
    original = problem.step_loss

    class Marker(torch.autograd.Function):
        live = 0

        @staticmethod
        def forward(ctx, x):
            Marker.live += 1
            ctx.token = Token()
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    class Token:
        def __del__(self):
            Marker.live -= 1

    def counted(parameters, x, k):
        loss = Marker.apply(original(parameters, x, k))
        alive.append(Marker.live)
        return loss

    unrolled_gradient(counted, problem.validation_loss, problem.parameters, problem.x, [0.1] * 8)
    assert len(alive) == 16
    assert max(alive) <= 2
