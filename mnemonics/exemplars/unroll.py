"""The gradient of a validation loss with respect to the inputs of K SGD steps, exact and in memory independent of K.

Notation (α_k: learning rates, μ: momentum, L_k: loss of step k, V: validation loss, x: inputs):

    forward      g_k     = dL_k(θ_k, x) / dθ_k
                 v_{k+1} = μ v_k + g_k            v_0 = 0
                 θ_{k+1} = θ_k - α_k v_{k+1}      k = 0 .. K-1

    reverse      invariant before reverse step k:  λ = dV/dθ_{k+1},  ν = dV/dv_{k+1} by way of v_{k+2} only
                 ν      <- ν - α_k λ                        now the whole of dV/dv_{k+1}
                 dV/dα_k = -<λ, v_{k+1}>
                 λ      <- λ + (∂g_k/∂θ_k)ᵀ ν               a Hessian-vector product
                 dV/dx  <- dV/dx + (∂g_k/∂x)ᵀ ν             the mixed one, from the same backward pass
                 ν      <- μ ν

The forward pass keeps θ_k (and v_{k+1} with momentum): K copies of the parameters, which are far smaller than the
activations of one step. Of many steps even those add up, so then only every sqrt(K)-th point is kept and the others are
computed again when the reverse pass comes by. That pass needs the graph of each step. Those of the last ones are kept
from the forward pass, as many as fit into a given memory, and the others built again, which gives the same numbers.
With none kept, memory does not grow with K. The plain unrolled graph gives the same gradient from K graphs at once.

All parameters that the steps change are one vector θ (P,): a step is then a handful of operations however many layers
there are, and K vectors do not scatter over the heap as thousands of small tensors would. `Layout` has their shapes.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mnemonics.engine.cuda_graphs import Captured
from mnemonics.exemplars.convolution import TwiceDifferentiable

Parameters = dict[str, Tensor]
Draws = tuple[Tensor, ...]  # what differs from step to step: indices of a minibatch, labels, crops, ...: (K, ...) each
StepLoss = Callable[..., Tensor]  # (parameters, x, *draw_k) -> L_k
ValidationLoss = Callable[[Parameters], Tensor]
KEPT_POINTS = 32  # an unroll up to this long keeps every θ_k; beyond, one more forward pass is the cheaper price


class Schedule(NamedTuple):
    """The K steps of an unroll."""

    draws: Draws  # each is used twice, so whatever is random in a step (minibatch, augmentation) is drawn before
    rates: Tensor  # α_0 .. α_{K-1}, (K,)
    momentum: float = 0.0  # μ of the inner SGD, as in torch.optim.SGD without dampening

    def part(self, steps: slice) -> "Schedule":
        """Some of the steps."""
        return Schedule(tuple(draw[steps] for draw in self.draws), self.rates[steps], self.momentum)


class UnrolledGradient(NamedTuple):
    """What `unrolled_gradient` returns."""

    loss: Tensor  # V(θ_K), scalar
    inputs: Tensor  # dV/dx, shape of x
    rates: Tensor  # dV/dα, (K,)
    parameters: Parameters  # θ_K, as the layout gives it


class Graph(NamedTuple):
    """The graph of a step: from θ_k (P,) and x to g_k (P,)."""

    θ: Tensor
    inputs: Tensor
    gradient: Tensor


class Layout:
    """Names and shapes of parameters that are kept as one vector."""

    def __init__(self, parameters: Parameters):
        self.shapes = {name: p.shape for name, p in parameters.items()}
        self.sizes = [p.numel() for p in parameters.values()]

    def flatten(self, parameters: Parameters) -> Tensor:
        """(P,), detached."""
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.shapes])

    def unflatten(self, θ: Tensor) -> Parameters:
        """Views of θ (P,) by name; gradients flow through them."""
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), θ.split(self.sizes), strict=True)
        }


class State:
    """What the steps of a segment of an unroll read and write. All of it, the number of the step included, stays where
    it is from step to step, so that a CUDA graph of one step is one of every step. Points and velocities are one block
    of memory each: many small ones would leave holes between the temporaries of the steps."""

    def __init__(self, θ: Tensor, inputs: Tensor, schedule: Schedule):
        """Room for steps like those of `schedule` from points like θ (P,)."""
        self.inputs, self.momentum, steps = inputs.detach(), schedule.momentum, len(schedule.rates)
        self.draws, self.rates = tuple(torch.empty_like(draw) for draw in schedule.draws), schedule.rates.clone()
        self.points = θ.new_empty(steps + 1, len(θ))  # θ_0, θ_1, ... of the segment
        self.velocities = torch.zeros_like(self.points) if self.momentum else None  # v_0, v_1, ...; else v_{k+1} = g_k
        self.k = torch.zeros(1, dtype=torch.int64, device=θ.device)  # the next step forward, the last one in reverse
        self.λ, self.ν = torch.zeros_like(θ), torch.zeros_like(θ)
        self.inputs_grad, self.rates_grad = torch.zeros_like(self.inputs), torch.zeros_like(self.rates)

    def begin(self, schedule: Schedule, θ: Tensor, velocity: Tensor | None) -> None:
        """Be where the steps of `schedule`, at most as many as there is room for, start from θ and `velocity` (0)."""
        for mine, new in zip((*self.draws, self.rates), (*schedule.draws, schedule.rates), strict=True):
            mine[: len(new)] = new
        self.points[0] = θ
        if self.momentum:
            self.velocities[0] = 0 if velocity is None else velocity
        self.k.zero_()

    def end(self, steps: int) -> tuple[Tensor, Tensor | None]:
        """Copies of θ and velocity after so many steps."""
        return self.points[steps].clone(), self.velocities[steps].clone() if self.momentum else None

    def now(self, *of: Tensor) -> list[Tensor]:
        """What step k has of each."""
        return [tensor.index_select(0, self.k)[0] for tensor in of]


class Steps:
    """One step, forward and in reverse, of a loss that is a function of its arguments alone."""

    def __init__(self, step_loss: StepLoss, layout: Layout, memory: int = 0):
        """
        Args:
            step_loss: (parameters, x, *draw_k) -> scalar L_k.
            layout: of the parameters.
            memory: bytes that graphs kept from the forward pass may take.
        """
        self.step_loss, self.layout, self.memory = step_loss, layout, memory
        self.bytes: int | None = None  # of a graph; not known before there was one

    def state(self, θ: Tensor, inputs: Tensor, schedule: Schedule) -> State:
        """A state for such steps from θ (P,)."""
        return State(θ, inputs, schedule)

    def loss(self, θ: Tensor, inputs: Tensor, draw: Draws) -> Tensor:
        """L_k(θ, x) for θ (P,)."""
        return self.step_loss(self.layout.unflatten(θ), inputs, *draw)

    def graph(self, state: State, kept: bool = True) -> Graph:
        """That of step k; g_k alone, unless it is `kept`."""
        θ, *draw = state.now(state.points, *state.draws)
        θ, x = θ.requires_grad_(), state.inputs.detach().requires_grad_(kept)
        with TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second one
            loss = self.loss(θ, x, draw)
        return Graph(θ, x, *torch.autograd.grad(loss, θ, create_graph=kept))

    def forward(self, state: State, keep: bool = False) -> Graph | None:
        """One step of the forward recursion above; its graph, if it shall be kept."""
        graph = self.graph(state, keep)
        step = graph.gradient.detach()
        (θ, rate), after = state.now(state.points, state.rates), state.k + 1
        if state.momentum:
            step = torch.add(step, *state.now(state.velocities), alpha=state.momentum)
            state.velocities.index_copy_(0, after, step[None])
        state.points.index_copy_(0, after, torch.addcmul(θ, rate, step, value=-1)[None])
        state.k.copy_(after)
        return graph if keep else None

    def reverse(self, state: State, graph: Graph | None = None) -> None:
        """One step of the reverse recursion; builds its graph where none was kept."""
        if state.momentum:
            (velocity,) = state.now(state.velocities)
        state.k -= 1
        (rate,) = state.now(state.rates)
        state.ν.addcmul_(rate, state.λ, value=-1)
        θ, x, gradient = graph or self.graph(state)
        second_order, mixed = torch.autograd.grad(gradient, [θ, x], state.ν, allow_unused=True, materialize_grads=True)
        velocity = velocity if state.momentum else gradient.detach()
        state.rates_grad.index_copy_(0, state.k, -state.λ.dot(velocity)[None])
        state.λ += second_order
        state.inputs_grad += mixed
        state.ν *= state.momentum

    def run(self, state: State, schedule: Schedule, start: tuple[Tensor, Tensor | None], keep: bool) -> list[Graph]:
        """All steps of `schedule` forward, from θ and velocity; the graphs of the last ones, as many as there is memory
        for, if they shall be kept."""
        state.begin(schedule, *start)
        steps = len(schedule.rates)
        kept = steps - (self.fitting(state) if keep else 0)
        return [graph for k in range(steps) if (graph := self.forward(state, k >= kept)) is not None]

    def fitting(self, state: State) -> int:
        """How many graphs fit into the memory. The first time one is built to see how large it is."""
        if self.memory and self.bytes is None:
            storages: dict[int, int] = {}

            def saved(tensor: Tensor) -> Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
                self.graph(state)
            self.bytes = sum(storages.values())
        return self.memory // max(1, self.bytes or 1)


class GraphedSteps(Steps):
    """The same on a CUDA device, one step in each direction captured as a CUDA graph that is replayed for every step;
    no graph of autograd is kept. For unrolls whose arguments all have the same shapes. The results of one are
    overwritten by the next."""

    static: State | None = None

    def state(self, θ: Tensor, inputs: Tensor, schedule: Schedule) -> State:
        if self.static is None:
            self.static = state = State(θ, inputs.clone(), schedule)
            state.begin(schedule, θ, None)
            self.replay_forward = Captured(functools.partial(super().forward, state), (), [state.k])
            state.k.fill_(1)
            self.replay_reverse = Captured(
                functools.partial(super().reverse, state), (), [state.k], self.replay_forward
            )
        self.static.inputs.copy_(inputs)
        return self.static

    def forward(self, state: State, keep: bool = False) -> None:
        self.replay_forward()

    def reverse(self, state: State, graph: Graph | None = None) -> None:
        self.replay_reverse()


def segments_of(K: int) -> list[slice]:
    """The steps in runs whose points are kept at once: all of them up to KEPT_POINTS, else about sqrt(K) at a time."""
    length = K if K <= KEPT_POINTS else math.ceil(math.sqrt(K))
    return [slice(start, min(start + length, K)) for start in range(0, K, length)]


def unrolled_gradient(
    steps: Steps, validation_loss: ValidationLoss, parameters: Parameters, inputs: Tensor, schedule: Schedule
) -> UnrolledGradient:
    """Differentiate the validation loss after K SGD steps with respect to the inputs of those steps (Eq. 9).

    Args:
        steps: how to do a step.
        validation_loss: parameters -> scalar V.
        parameters: θ_0 by name: the weights that the steps change. Anything else the losses need is their own affair.
        inputs: x, floating point, any shape; what the gradient is wanted for.
        schedule: the K steps.
    Returns:
        V(θ_K), dV/dx, dV/dα and θ_K.
    """
    segments, starts = segments_of(len(schedule.rates)), [(steps.layout.flatten(parameters), None)]
    state = steps.state(starts[0][0], inputs, schedule.part(segments[0]))
    for segment in segments:
        graphs = steps.run(state, schedule.part(segment), starts[-1], keep=segment is segments[-1])
        starts.append(state.end(segment.stop - segment.start))
    θ_K = starts.pop()[0].requires_grad_()
    loss = validation_loss(steps.layout.unflatten(θ_K))
    state.λ.copy_(*torch.autograd.grad(loss, θ_K))
    state.ν.zero_()
    state.inputs_grad.zero_()
    rates_grad = torch.empty_like(schedule.rates)
    for segment, start in zip(reversed(segments), reversed(starts), strict=True):
        if segment is not segments[-1]:  # the points of the last one are still there
            graphs = steps.run(state, schedule.part(segment), start, keep=True)
        for _ in range(segment.start, segment.stop):
            steps.reverse(state, graphs.pop() if graphs else None)
        rates_grad[segment] = state.rates_grad[: segment.stop - segment.start]
    return UnrolledGradient(loss.detach(), state.inputs_grad, rates_grad, steps.layout.unflatten(θ_K.detach()))


def plain_unrolled_gradient(
    steps: Steps, validation_loss: ValidationLoss, parameters: Parameters, inputs: Tensor, schedule: Schedule
) -> UnrolledGradient:
    """The reference for `unrolled_gradient`: the same by keeping the graphs of all K steps and differentiating once."""
    x = inputs.detach().requires_grad_()
    α = schedule.rates.clone().requires_grad_()
    θ = steps.layout.flatten(parameters).requires_grad_()
    v = torch.zeros_like(θ)
    for k, rate in enumerate(α):
        draw = [draw[k] for draw in schedule.draws]
        (gradient,) = torch.autograd.grad(steps.loss(θ, x, draw), θ, create_graph=True)
        v = schedule.momentum * v + gradient
        θ = θ - rate * v
    loss = validation_loss(steps.layout.unflatten(θ))
    inputs_grad, rates_grad = torch.autograd.grad(loss, [x, α])
    return UnrolledGradient(loss.detach(), inputs_grad, rates_grad, steps.layout.unflatten(θ.detach()))
