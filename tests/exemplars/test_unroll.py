"""The unrolled gradient against the plain graph, finite differences and torch.optim."""

import gc
import weakref
from collections import Counter

import pretended_cuda
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mnemonics.data.augment import CropAndMirror
from mnemonics.data.batches import LabelledImages
from mnemonics.exemplars import unroll as unroll_module
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings
from mnemonics.exemplars.unroll import GraphedSteps, Layout, Schedule, Steps, plain_unrolled_gradient, unrolled_gradient
from mnemonics.models import make_network

SIZE = 8


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16), nn.Tanh(), nn.Linear(16, 4))


def resnet_with_statistics():
    """ResNet-8 in eval mode whose BatchNorm statistics are not the initial ones."""
    model = make_network("resnet8", 4, torch.device("cpu")).double()
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
        self.augment = CropAndMirror(2, True, 0.3) if augmented else None
        self.draws = []
        for _ in range(10):
            batch = torch.randperm(12, generator=draws)[:5]
            self.draws.append((batch, *(self.augment.draw(5, draws) if augmented else ())))

    def step_loss(self, parameters, x, batch, *crops):
        images = self.augment.apply(x[batch], *crops) if self.augment else x[batch]
        return F.cross_entropy(functional_call(self.model, parameters, (images,)), self.y[batch])

    def validation_loss(self, parameters):
        return F.cross_entropy(functional_call(self.model, parameters, (self.xv,)), self.yv)

    def arguments(self, rates, momentum=0.0, memory=0):
        draws = tuple(torch.stack(draw) for draw in zip(*self.draws[: len(rates)], strict=True))
        schedule = Schedule(draws, torch.tensor(rates, dtype=self.x.dtype, device=self.x.device), momentum)
        steps = Steps(self.step_loss, Layout(self.parameters), memory)
        return steps, self.validation_loss, self.parameters, self.x, schedule

    def plain(self, rates, momentum):
        return plain_unrolled_gradient(*self.arguments(rates, momentum))

    def ours(self, rates, momentum, memory=0):
        return unrolled_gradient(*self.arguments(rates, momentum, memory))

    def last(self, x, rates, momentum):
        """θ_K by name."""
        steps, *_, schedule = self.arguments(rates, momentum)
        θ = steps.layout.flatten(self.parameters)
        state = steps.state(θ, x, schedule)
        steps.run(state, schedule, (θ, None), keep=False)
        return steps.layout.unflatten(state.points[-1])


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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_recomputed_segments_give_the_same_gradient(momentum, monkeypatch):
    problem, rates = Problem(mlp, augmented=True), [0.2 / (k + 1) for k in range(10)]
    plain = problem.plain(rates, momentum)
    monkeypatch.setattr(unroll_module, "KEPT_POINTS", 9)
    assert [range(10)[s] for s in unroll_module.segments_of(10)] == [range(4), range(4, 8), range(8, 10)]
    ours = problem.ours(rates, momentum)
    assert relative_error(ours.inputs, plain.inputs) < 1e-10
    assert relative_error(ours.rates, plain.rates) < 1e-10


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
        return problem.validation_loss(problem.last(x, rates, momentum)).item()

    slope = (loss_at(start + step * direction, rates) - loss_at(start - step * direction, rates)) / (2 * step)
    assert slope == pytest.approx((ours.inputs * direction).sum().item(), rel=1e-6)
    for k in range(4):
        up, down = list(rates), list(rates)
        up[k], down[k] = rates[k] + step, rates[k] - step
        assert (loss_at(start, up) - loss_at(start, down)) / (2 * step) == pytest.approx(ours.rates[k].item(), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_steps_are_those_of_torch_sgd(momentum):
    problem, rates = Problem(resnet_with_statistics), [0.1] * 6
    last = problem.last(problem.x, rates, momentum)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=momentum)
    for k in range(6):
        optimizer.zero_grad()
        problem.step_loss(dict(problem.model.named_parameters()), problem.x, *problem.draws[k]).backward()
        optimizer.step()
    for name, p in problem.model.named_parameters():
        assert relative_error(last[name], p.detach()) < 1e-12


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
    unused = [i for i in range(12) if i not in problem.draws[0][0]]
    assert not result.inputs[unused].any()
    assert result.inputs[problem.draws[0][0]].flatten(1).any(1).all()
    assert all(torch.equal(before[name], p) for name, p in problem.parameters.items())
    assert not problem.x.requires_grad
    assert all(p.grad is None for p in problem.model.parameters())


class Saved:
    """A tensor kept for some backward pass; counts bytes, those of a storage once."""

    live, peak = Counter(), 0

    def __init__(self, tensor):
        self.tensor, self.storage = tensor, (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        Saved.live[self.storage] += 1
        Saved.peak = max(Saved.peak, sum(size for _, size in +Saved.live))

    def __del__(self):
        Saved.live[self.storage] -= 1


def peak_of_saved_tensors(gradient, arguments):
    gc.collect()
    Saved.live.clear()
    Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        gradient(*arguments)
    return Saved.peak


def test_what_is_kept_for_backward_passes_does_not_grow_with_k():
    problem = Problem(mlp)
    rates = {K: [0.1] * K for K in (2, 8)}
    ours = {K: peak_of_saved_tensors(unrolled_gradient, problem.arguments(rates[K])) for K in rates}
    assert ours[8] < 1.1 * ours[2]
    plain = {K: peak_of_saved_tensors(plain_unrolled_gradient, problem.arguments(rates[K])) for K in rates}
    assert plain[8] > 3 * plain[2]


@pytest.mark.parametrize(
    ("momentum", "points", "dtype"), [(0.0, 32, torch.float32), (0.9, 9, torch.float32), (0.9, 32, torch.float64)]
)
def test_graphs_kept_from_the_forward_pass_change_no_bit(momentum, points, dtype, monkeypatch):
    monkeypatch.setattr(unroll_module, "KEPT_POINTS", points)
    problem, rates = Problem(resnet_with_statistics, augmented=True), [0.2 / (k + 1) for k in range(10)]
    problem.model, problem.x, problem.xv = (part.to(dtype) for part in (problem.model, problem.x, problem.xv))
    problem.parameters = {name: p.detach() for name, p in problem.model.named_parameters()}
    rebuilt = problem.ours(rates, momentum)
    steps, *rest = problem.arguments(rates, momentum, memory=10**9)
    built = unrolled_gradient(steps, *rest)
    some = problem.ours(rates, momentum, memory=int(3.5 * steps.bytes))
    for kept in (built, some):
        assert all(torch.equal(mine, other) for mine, other in zip(kept[:3], rebuilt[:3], strict=True))


def test_graphs_that_are_kept_fit_into_the_memory(monkeypatch):
    problem, rates = Problem(resnet_with_statistics), [0.1] * 6
    steps, *rest = problem.arguments(rates, memory=10**9)
    everything = peak_of_saved_tensors(unrolled_gradient, (steps, *rest))
    nothing = peak_of_saved_tensors(unrolled_gradient, problem.arguments(rates))
    memory, graphs = int(2.5 * steps.bytes), []
    steps, *rest = problem.arguments(rates, memory=memory)
    monkeypatch.setattr(steps, "run", lambda *args, **kw: graphs.append(Steps.run(steps, *args, **kw)) or graphs[-1])
    some = peak_of_saved_tensors(unrolled_gradient, (steps, *rest))
    assert 2 * steps.bytes <= some <= nothing + memory < everything
    assert graphs == [[]]  # each is dropped where it was used
    assert not +Saved.live


def on_gpu(problem):
    """The same problem there."""
    device = torch.device("cuda")
    problem.model.to(device)
    problem.parameters = {name: p.to(device) for name, p in problem.parameters.items()}
    for name in ("x", "y", "xv", "yv"):
        setattr(problem, name, getattr(problem, name).to(device))
    problem.draws = [tuple(t.to(device) for t in draw) for draw in problem.draws]
    return problem


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("points", [9, 32])
def test_one_captured_step_is_every_step(momentum, points, monkeypatch):
    monkeypatch.setattr(unroll_module, "KEPT_POINTS", points)
    graphed = None
    with pretended_cuda.device():
        for seed in (0, 1):
            problem, rates = on_gpu(Problem(mlp, augmented=True, seed=seed)), [0.2 / (k + 1 + seed) for k in range(10)]
            steps, validation_loss, *rest = problem.arguments(rates, momentum)
            graphed = graphed or GraphedSteps(steps.step_loss, steps.layout)
            replayed, eager = (unrolled_gradient(kind, validation_loss, *rest) for kind in (graphed, steps))
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(replayed[:3], eager[:3], strict=True))


def test_what_was_captured_is_freed_with_the_base_level():
    with pretended_cuda.device():
        device = torch.device("cuda")
        data = LabelledImages(torch.randn(8, 3, SIZE, SIZE).to(device), (torch.arange(8) % 4).to(device))
        base = BaseLevel(mlp().to(device), BilevelSettings(steps=2))
        base.gradient(data, data, base.draw(data.labels, torch.Generator(device).manual_seed(0)), 0)
    (steps,) = base.steps.values()
    graphs = [weakref.ref(graph) for graph in (steps.replay_forward, steps.replay_reverse)]
    gc.disable()  # no cycle of references may be left for it
    try:
        del base, steps
        assert [graph() for graph in graphs] == [None, None]
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("augmented", [False, True])
def test_cuda_graphs_equal_the_eager_steps(momentum, augmented):
    torch.use_deterministic_algorithms(False)
    problem, rates = Problem(resnet_with_statistics, augmented), [0.1, 0.2, 0.1]
    eager = problem.ours(rates, momentum)
    steps, *rest = on_gpu(problem).arguments(rates, momentum)
    graphed = GraphedSteps(steps.step_loss, steps.layout)
    for _ in range(2):
        result = unrolled_gradient(graphed, *rest)
        assert relative_error(result.inputs.cpu(), eager.inputs) < 1e-9
        assert relative_error(result.rates.cpu(), eager.rates) < 1e-9
