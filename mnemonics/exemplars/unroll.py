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

The forward pass keeps only θ_k (and v_{k+1} with momentum), never a graph: K copies of the parameters, which for the
networks of this project are far smaller than the activations of one step. The reverse pass rebuilds the graph of one
step at a time. Differentiating through the plain unrolled graph gives the same numbers with K graphs in memory at once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Draw = tuple[Tensor, ...]  # what differs from step to step: indices of a minibatch, its labels, crops, ...
StepLoss = Callable[..., Tensor]  # (θ_k, x, *draw_k) -> L_k
ValidationLoss = Callable[[Parameters], Tensor]


class UnrolledGradient(NamedTuple):
    """What `unrolled_gradient` returns."""

    loss: Tensor  # V(θ_K), scalar
    inputs: Tensor  # dV/dx, shape of x
    rates: Tensor  # dV/dα, (K,)
    parameters: Parameters  # θ_K


class Steps:
    """One step, forward and in reverse, of a loss that is a function of its arguments alone."""

    def __init__(self, step_loss: StepLoss):
        self.step_loss = step_loss

    def gradient(self, parameters: Parameters, inputs: Tensor, draw: Draw) -> list[Tensor]:
        """g_k, in the order of `parameters`."""
        θ = as_leaves(parameters)
        return list(torch.autograd.grad(self.step_loss(θ, inputs.detach(), *draw), list(θ.values())))

    def reverse(
        self, parameters: Parameters, inputs: Tensor, draw: Draw, ν: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """(g_k, (∂g_k/∂θ_k)ᵀ ν, (∂g_k/∂x)ᵀ ν)."""
        θ, x = as_leaves(parameters), inputs.detach().requires_grad_()
        gradient = torch.autograd.grad(self.step_loss(θ, x, *draw), list(θ.values()), create_graph=True)
        products = torch.autograd.grad(gradient, [*θ.values(), x], ν, allow_unused=True, materialize_grads=True)
        return [g.detach() for g in gradient], list(products[:-1]), products[-1]


class GraphedSteps(Steps):
    """The same on a CUDA device, each direction captured once as a CUDA graph and replayed.

    Shapes must be those of the arguments given here. Results are overwritten by the next call.
    """

    def __init__(self, step_loss: StepLoss, parameters: Parameters, inputs: Tensor, draw: Draw):
        super().__init__(step_loss)
        self.parameters = {name: p.detach().clone() for name, p in parameters.items()}
        self.inputs, self.draw = inputs.detach().clone(), tuple(d.clone() for d in draw)
        self.ν = [torch.zeros_like(p) for p in self.parameters.values()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # lets libraries choose their kernels and allocate before the capture
            for _ in range(3):
                super().reverse(self.parameters, self.inputs, self.draw, self.ν)
        torch.cuda.current_stream().wait_stream(side)
        self.forward_graph, self.reverse_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph):
            self.forward_result = super().gradient(self.parameters, self.inputs, self.draw)
        with torch.cuda.graph(self.reverse_graph):
            self.reverse_result = super().reverse(self.parameters, self.inputs, self.draw, self.ν)

    def gradient(self, parameters: Parameters, inputs: Tensor, draw: Draw) -> list[Tensor]:
        self.copy_in(parameters, inputs, draw)
        self.forward_graph.replay()
        return self.forward_result

    def reverse(
        self, parameters: Parameters, inputs: Tensor, draw: Draw, ν: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        self.copy_in(parameters, inputs, draw)
        torch._foreach_copy_(self.ν, ν)
        self.reverse_graph.replay()
        return self.reverse_result

    def copy_in(self, parameters: Parameters, inputs: Tensor, draw: Draw) -> None:
        torch._foreach_copy_(list(self.parameters.values()), [p.detach() for p in parameters.values()])
        self.inputs.copy_(inputs.detach())
        for static, new in zip(self.draw, draw, strict=True):
            static.copy_(new)


def unroll(
    steps: Steps,
    parameters: Parameters,
    inputs: Tensor,
    draws: Sequence[Draw],
    rates: Sequence[float],
    momentum: float = 0.0,
) -> tuple[list[Parameters], list[list[Tensor]]]:
    """Run the K = len(rates) SGD steps (the forward recursion above).

    Returns:
        ([θ_0, ..., θ_K], [v_1, ..., v_K]), all detached; without momentum the second list is empty (v_{k+1} = g_k).
    """
    points, velocities = [{name: p.detach() for name, p in parameters.items()}], []
    for draw, rate in zip(draws, rates, strict=True):
        velocity = steps.gradient(points[-1], inputs, draw)
        if momentum:
            previous = velocities[-1] if velocities else [torch.zeros_like(g) for g in velocity]
            velocity = [momentum * v + g for v, g in zip(previous, velocity, strict=True)]
            velocities.append(velocity)
        points.append({name: p - rate * v for (name, p), v in zip(points[-1].items(), velocity, strict=True)})
    return points, velocities


def unrolled_gradient(
    steps: Steps,
    validation_loss: ValidationLoss,
    parameters: Parameters,
    inputs: Tensor,
    draws: Sequence[Draw],
    rates: Sequence[float],
    momentum: float = 0.0,
) -> UnrolledGradient:
    """Differentiate the validation loss after K SGD steps with respect to the inputs of those steps (Eq. 9).

    Args:
        steps: `Steps(step_loss)` or, with the same meaning, `GraphedSteps`; step_loss: (θ_k, x, *draw_k) -> scalar L_k.
        validation_loss: θ -> scalar V.
        parameters: θ_0 by name: the weights that the steps change. Anything else the losses need is their own affair.
        inputs: x, floating point, any shape; what the gradient is wanted for.
        draws: draw_0 .. draw_{K-1}: tensors that tell the steps apart. Each is used twice, so whatever is random in a
            step (its minibatch, its augmentation) has to be drawn beforehand.
        rates: α_0 .. α_{K-1}.
        momentum: μ of the inner SGD, as in torch.optim.SGD without dampening.
    Returns:
        V(θ_K), dV/dx, dV/dα and θ_K.
    """
    points, velocities = unroll(steps, parameters, inputs, draws, rates, momentum)
    leaves = as_leaves(points.pop())
    loss = validation_loss(leaves)
    λ = torch.autograd.grad(loss, list(leaves.values()))
    ν = [torch.zeros_like(p) for p in λ]
    inputs_grad, rates_grad = torch.zeros_like(inputs), [torch.zeros_like(loss)] * len(rates)
    for k in reversed(range(len(rates))):
        ν = [n - rates[k] * adjoint for n, adjoint in zip(ν, λ, strict=True)]
        gradient, second_order, mixed = steps.reverse(points.pop(), inputs, draws[k], ν)
        velocity = velocities[k] if momentum else gradient
        rates_grad[k] = -sum((adjoint * v).sum() for adjoint, v in zip(λ, velocity, strict=True))
        λ = [adjoint + s for adjoint, s in zip(λ, second_order, strict=True)]
        inputs_grad += mixed
        ν = [momentum * n for n in ν]
    parameters = {name: p.detach() for name, p in leaves.items()}
    return UnrolledGradient(loss.detach(), inputs_grad, torch.stack(rates_grad), parameters)


def plain_unrolled_gradient(
    steps: Steps,
    validation_loss: ValidationLoss,
    parameters: Parameters,
    inputs: Tensor,
    draws: Sequence[Draw],
    rates: Sequence[float],
    momentum: float = 0.0,
) -> UnrolledGradient:
    """The reference for `unrolled_gradient`: the same by keeping the graphs of all K steps and differentiating once."""
    x = inputs.detach().requires_grad_()
    α = torch.tensor(rates, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    θ = as_leaves(parameters)
    v = [torch.zeros_like(p) for p in θ.values()]
    for k, draw in enumerate(draws):
        gradient = torch.autograd.grad(steps.step_loss(θ, x, *draw), list(θ.values()), create_graph=True)
        v = [momentum * old + g for old, g in zip(v, gradient, strict=True)]
        θ = {name: p - α[k] * step for (name, p), step in zip(θ.items(), v, strict=True)}
    loss = validation_loss(θ)
    inputs_grad, rates_grad = torch.autograd.grad(loss, [x, α])
    return UnrolledGradient(loss.detach(), inputs_grad, rates_grad, {name: p.detach() for name, p in θ.items()})


def as_leaves(parameters: Parameters) -> Parameters:
    """Detached tensors on the same storage that require gradients."""
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}
