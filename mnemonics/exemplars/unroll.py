"""The gradient of a validation loss with respect to the inputs of K SGD steps, exact and in memory independent of K.

Notation (alpha_k: learning rates, mu: momentum, L_k: loss of step k, V: validation loss, x: inputs):

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
StepLoss = Callable[[Parameters, Tensor, int], Tensor]
ValidationLoss = Callable[[Parameters], Tensor]


class UnrolledGradient(NamedTuple):
    """What `unrolled_gradient` returns."""

    loss: Tensor  # V(θ_K), scalar
    inputs: Tensor  # dV/dx, shape of x
    rates: Tensor  # dV/dα, (K,)
    parameters: Parameters  # θ_K


def unroll(
    step_loss: StepLoss, parameters: Parameters, inputs: Tensor, rates: Sequence[float], momentum: float = 0.0
) -> tuple[list[Parameters], list[Parameters]]:
    """Run the K = len(rates) SGD steps (the forward recursion above).

    Returns:
        ([θ_0, ..., θ_K], [v_1, ..., v_K]), all detached; without momentum the second list is empty (v_{k+1} = g_k).
    """
    points, velocities = [{name: p.detach() for name, p in parameters.items()}], []
    for k, rate in enumerate(rates):
        leaves = as_leaves(points[-1])
        velocity = torch.autograd.grad(step_loss(leaves, inputs.detach(), k), list(leaves.values()))
        if momentum:
            previous = velocities[-1].values() if velocities else [torch.zeros_like(g) for g in velocity]
            velocity = [momentum * v + g for v, g in zip(previous, velocity, strict=True)]
            velocities.append(dict(zip(leaves, velocity, strict=True)))
        points.append({name: p.detach() - rate * v for (name, p), v in zip(leaves.items(), velocity, strict=True)})
    return points, velocities


def unrolled_gradient(
    step_loss: StepLoss,
    validation_loss: ValidationLoss,
    parameters: Parameters,
    inputs: Tensor,
    rates: Sequence[float],
    momentum: float = 0.0,
) -> UnrolledGradient:
    """Differentiate the validation loss after K SGD steps with respect to the inputs of those steps (Eq. 9).

    Args:
        step_loss: (parameters, inputs, k) -> scalar L_k. It is called twice for each k and must be a function of its
            arguments: minibatches and augmentation are drawn beforehand and looked up by k. Inputs of any shape.
        validation_loss: parameters -> scalar V.
        parameters: θ_0 by name: the weights that the steps change. Anything else the losses need is their own affair.
        inputs: x, floating point; what the gradient is wanted for.
        rates: α_0 .. α_{K-1}.
        momentum: μ of the inner SGD, as in torch.optim.SGD without dampening.
    Returns:
        V(θ_K), dV/dx, dV/dα and θ_K.
    """
    points, velocities = unroll(step_loss, parameters, inputs, rates, momentum)
    leaves = as_leaves(points.pop())
    loss = validation_loss(leaves)
    λ = torch.autograd.grad(loss, list(leaves.values()))
    ν = [torch.zeros_like(p) for p in λ]
    inputs_grad, rates_grad = torch.zeros_like(inputs), [torch.zeros_like(loss)] * len(rates)
    x = inputs.detach().requires_grad_()
    for k in reversed(range(len(rates))):
        θ = as_leaves(points.pop())
        ν = [n - rates[k] * adjoint for n, adjoint in zip(ν, λ, strict=True)]
        gradient = torch.autograd.grad(step_loss(θ, x, k), list(θ.values()), create_graph=True)
        velocity = list(velocities[k].values()) if momentum else gradient
        rates_grad[k] = -sum((adjoint * v.detach()).sum() for adjoint, v in zip(λ, velocity, strict=True))
        *second_order, mixed = torch.autograd.grad(
            gradient, [*θ.values(), x], ν, allow_unused=True, materialize_grads=True
        )
        λ = [adjoint + s for adjoint, s in zip(λ, second_order, strict=True)]
        inputs_grad += mixed
        ν = [momentum * n for n in ν]
    return UnrolledGradient(
        loss.detach(), inputs_grad, torch.stack(rates_grad), {n: p.detach() for n, p in leaves.items()}
    )


def plain_unrolled_gradient(
    step_loss: StepLoss,
    validation_loss: ValidationLoss,
    parameters: Parameters,
    inputs: Tensor,
    rates: Sequence[float],
    momentum: float = 0.0,
) -> UnrolledGradient:
    """The reference for `unrolled_gradient`: the same by keeping the graphs of all K steps and differentiating once."""
    x = inputs.detach().requires_grad_()
    α = torch.tensor(rates, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    θ = as_leaves(parameters)
    v = [torch.zeros_like(p) for p in θ.values()]
    for k in range(len(rates)):
        gradient = torch.autograd.grad(step_loss(θ, x, k), list(θ.values()), create_graph=True)
        v = [momentum * old + g for old, g in zip(v, gradient, strict=True)]
        θ = {name: p - α[k] * step for (name, p), step in zip(θ.items(), v, strict=True)}
    loss = validation_loss(θ)
    inputs_grad, rates_grad = torch.autograd.grad(loss, [x, α])
    return UnrolledGradient(loss.detach(), inputs_grad, rates_grad, {name: p.detach() for name, p in θ.items()})


def as_leaves(parameters: Parameters) -> Parameters:
    """Detached tensors on the same storage that require gradients."""
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}
