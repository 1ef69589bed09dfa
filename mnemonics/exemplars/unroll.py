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

The forward pass keeps only θ_k (and v_{k+1} with momentum), never a graph: K copies of the parameters, which are far
smaller than the activations of one step. Of many steps even those add up, so then only every sqrt(K)-th point is kept
and the others are computed again when the reverse pass comes by. That pass rebuilds the graph of one step at a time.
Differentiating through the plain unrolled graph gives the same numbers with K graphs in memory at once.

All parameters that the steps change are one vector θ (P,): a step is then a handful of operations however many layers
there are, and K vectors do not scatter over the heap as thousands of small tensors would. `Layout` has their shapes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mnemonics.engine.cuda_graphs import Captured
from mnemonics.exemplars.convolution import TwiceDifferentiable

Parameters = dict[str, Tensor]
Draw = tuple[Tensor, ...]  # what differs from step to step: indices of a minibatch, its labels, crops, ...
StepLoss = Callable[..., Tensor]  # (parameters, x, *draw_k) -> L_k
ValidationLoss = Callable[[Parameters], Tensor]
KEPT_POINTS = 32  # an unroll up to this long keeps every θ_k; beyond, one more forward pass is the cheaper price


@dataclass(frozen=True)
class Schedule:
    """The K steps of an unroll."""

    draws: Sequence[Draw]  # draw_0 .. draw_{K-1}: tensors that tell the steps apart. Each is used twice, so whatever is
    # random in a step (its minibatch, its augmentation) has to be drawn beforehand
    rates: Sequence[float]  # α_0 .. α_{K-1}
    momentum: float = 0.0  # μ of the inner SGD, as in torch.optim.SGD without dampening

    def __getitem__(self, steps: slice) -> "Schedule":
        """Some of the steps."""
        return Schedule(self.draws[steps], self.rates[steps], self.momentum)


class UnrolledGradient(NamedTuple):
    """What `unrolled_gradient` returns."""

    loss: Tensor  # V(θ_K), scalar
    inputs: Tensor  # dV/dx, shape of x
    rates: Tensor  # dV/dα, (K,)
    parameters: Parameters  # θ_K


class Layout:
    """Names and shapes of parameters that are kept as one vector."""

    def __init__(self, parameters: Parameters):
        self.shapes = {name: p.shape for name, p in parameters.items()}
        self.sizes = [p.numel() for p in parameters.values()]

    def flatten(self, parameters: Parameters) -> Tensor:
        """(P,), detached."""
        return torch.cat([p.detach().reshape(-1) for p in parameters.values()])

    def unflatten(self, θ: Tensor) -> Parameters:
        """Views of θ (P,) by name; gradients flow through them."""
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), θ.split(self.sizes), strict=True)
        }


class Steps:
    """One step, forward and in reverse, of a loss that is a function of its arguments alone."""

    def __init__(self, step_loss: StepLoss, parameters: Parameters):
        """`step_loss`: (parameters, x, *draw_k) -> scalar L_k, for parameters like `parameters`."""
        self.step_loss, self.layout = step_loss, Layout(parameters)

    def loss(self, θ: Tensor, inputs: Tensor, draw: Draw) -> Tensor:
        """L_k(θ, x) for θ (P,)."""
        return self.step_loss(self.layout.unflatten(θ), inputs, *draw)

    def gradient(self, θ: Tensor, inputs: Tensor, draw: Draw) -> Tensor:
        """g_k (P,)."""
        θ = θ.detach().requires_grad_()
        return torch.autograd.grad(self.loss(θ, inputs.detach(), draw), θ)[0]

    def reverse(self, θ: Tensor, inputs: Tensor, draw: Draw, ν: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g_k (P,), (∂g_k/∂θ_k)ᵀ ν (P,) and (∂g_k/∂x)ᵀ ν (shape of x)."""
        θ, x = θ.detach().requires_grad_(), inputs.detach().requires_grad_()
        with TwiceDifferentiable():
            loss = self.loss(θ, x, draw)
        (gradient,) = torch.autograd.grad(loss, θ, create_graph=True)
        second_order, mixed = torch.autograd.grad(gradient, [θ, x], ν, allow_unused=True, materialize_grads=True)
        return gradient.detach(), second_order, mixed


class GraphedSteps(Steps):
    """The same on a CUDA device, each direction captured once as a CUDA graph and replayed.

    Shapes must be those of the arguments given here. Results are overwritten by the next call.
    """

    def __init__(self, step_loss: StepLoss, parameters: Parameters, inputs: Tensor, draw: Draw):
        super().__init__(step_loss, parameters)
        θ = self.layout.flatten(parameters)
        one, other = super().gradient, super().reverse
        self.captured_gradient = Captured(lambda θ, x, *draw: one(θ, x, draw), (θ, inputs, *draw))
        ν = torch.zeros_like(θ)
        self.captured_reverse = Captured(lambda ν, θ, x, *draw: other(θ, x, draw, ν), (ν, θ, inputs, *draw))

    def gradient(self, θ: Tensor, inputs: Tensor, draw: Draw) -> Tensor:
        return self.captured_gradient(θ, inputs.detach(), *draw)

    def reverse(self, θ: Tensor, inputs: Tensor, draw: Draw, ν: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.captured_reverse(ν, θ, inputs.detach(), *draw)


def unroll(
    steps: Steps, θ: Tensor, inputs: Tensor, schedule: Schedule, velocity: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run the K SGD steps of `schedule` (the forward recursion above) from θ (P,) and `velocity` (P,), by default 0.

    Returns:
        (θ_0, ..., θ_K) as (K + 1, P) and v_0, ..., v_K likewise, or None without momentum, as v_{k+1} = g_k then. Each
        is one block of memory: many small ones would leave holes between the temporaries of the steps.
    """
    momentum = schedule.momentum
    points = θ.new_empty(len(schedule.rates) + 1, len(θ))
    velocities = torch.zeros_like(points) if momentum else None
    points[0] = θ.detach()
    if momentum and velocity is not None:
        velocities[0] = velocity
    for k, (draw, rate) in enumerate(zip(schedule.draws, schedule.rates, strict=True)):
        step = steps.gradient(points[k], inputs, draw)
        if momentum:
            step = torch.add(step, velocities[k], alpha=momentum, out=velocities[k + 1])
        torch.sub(points[k], step, alpha=rate, out=points[k + 1])
    return points, velocities


def segments_of(K: int) -> list[slice]:
    """The steps in runs whose points are kept at once: all of them up to KEPT_POINTS, else about sqrt(K) at a time."""
    length = K if K <= KEPT_POINTS else math.ceil(math.sqrt(K))
    return [slice(start, min(start + length, K)) for start in range(0, K, length)]


def unrolled_gradient(
    steps: Steps, validation_loss: ValidationLoss, parameters: Parameters, inputs: Tensor, schedule: Schedule
) -> UnrolledGradient:
    """Differentiate the validation loss after K SGD steps with respect to the inputs of those steps (Eq. 9).

    Args:
        steps: `Steps` or, with the same meaning, `GraphedSteps`.
        validation_loss: parameters -> scalar V.
        parameters: θ_0 by name: the weights that the steps change. Anything else the losses need is their own affair.
        inputs: x, floating point, any shape; what the gradient is wanted for.
        schedule: the K steps.
    Returns:
        V(θ_K), dV/dx, dV/dα and θ_K.
    """
    rates, momentum = schedule.rates, schedule.momentum
    segments, starts = segments_of(len(rates)), [(steps.layout.flatten(parameters), None)]
    for segment in segments:
        points, velocities = unroll(steps, starts[-1][0], inputs, schedule[segment], starts[-1][1])
        starts.append((points[-1].clone(), velocities[-1].clone() if momentum else None))
    θ_K = starts.pop()[0].requires_grad_()
    loss = validation_loss(steps.layout.unflatten(θ_K))
    (λ,) = torch.autograd.grad(loss, θ_K)
    ν, inputs_grad, rates_grad = torch.zeros_like(λ), torch.zeros_like(inputs), [torch.zeros_like(loss)] * len(rates)
    for segment, (θ, velocity) in zip(reversed(segments), reversed(starts), strict=True):
        if segment is not segments[-1]:  # the points of the last one are still there
            points, velocities = unroll(steps, θ, inputs, schedule[segment], velocity)
        for k in reversed(range(segment.start, segment.stop)):
            i = k - segment.start  # points[i] = θ_k
            ν.sub_(λ, alpha=rates[k])
            gradient, second_order, mixed = steps.reverse(points[i], inputs, schedule.draws[k], ν)
            rates_grad[k] = -λ.dot(velocities[i + 1] if momentum else gradient)
            λ += second_order
            inputs_grad += mixed
            ν *= momentum
    return UnrolledGradient(loss.detach(), inputs_grad, torch.stack(rates_grad), steps.layout.unflatten(θ_K.detach()))


def plain_unrolled_gradient(
    steps: Steps, validation_loss: ValidationLoss, parameters: Parameters, inputs: Tensor, schedule: Schedule
) -> UnrolledGradient:
    """The reference for `unrolled_gradient`: the same by keeping the graphs of all K steps and differentiating once."""
    x = inputs.detach().requires_grad_()
    α = torch.tensor(schedule.rates, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    θ = steps.layout.flatten(parameters).requires_grad_()
    v = torch.zeros_like(θ)
    for k, draw in enumerate(schedule.draws):
        (gradient,) = torch.autograd.grad(steps.loss(θ, x, draw), θ, create_graph=True)
        v = schedule.momentum * v + gradient
        θ = θ - α[k] * v
    loss = validation_loss(steps.layout.unflatten(θ))
    inputs_grad, rates_grad = torch.autograd.grad(loss, [x, α])
    return UnrolledGradient(loss.detach(), inputs_grad, rates_grad, steps.layout.unflatten(θ.detach()))
