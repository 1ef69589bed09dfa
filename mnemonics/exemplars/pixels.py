"""Exemplar pixels as parameters of an optimiser."""

from typing import Any

import torch
from torch import Tensor


class Pixels:
    """Exemplar pixels [n, ...] with their optimiser. Each image has its own optimiser state, so that updating some
    images leaves the others untouched, momentum included. No weight decay: it would pull pixels to the mean colour.

    Args:
        images: float [n, ...]; changed in place.
        low, high: valid range, both numbers or both tensors that broadcast to `images`; None for no limit.
        optimizer: "adam" or "sgd".
        rate: learning rate in units of the images, halved every fifth of the epochs.
        epochs: how often `end_epoch` will be called.
    """

    def __init__(
        self,
        images: Tensor,
        low: Tensor | float | None,
        high: Tensor | float | None,
        optimizer: str,
        rate: float,
        epochs: int,
    ):
        self.images, self.low, self.high = images, low, high
        self.rows = images.unbind()  # views: what the optimiser does to them happens to `images`
        self.optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer](self.rows, lr=rate)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, max(1, round(epochs / 5)), gamma=0.5)

    def step(self, index: Tensor, gradient: Tensor) -> None:
        """Update the images `index` (int64 [m]) by `gradient` (float [m, ...]) and clamp them to the valid range."""
        self.optimizer.zero_grad(set_to_none=True)
        for i, row_gradient in zip(index.tolist(), gradient, strict=True):
            self.rows[i].grad = row_gradient
        self.optimizer.step()
        if self.low is not None or self.high is not None:
            self.images.clamp_(self.low, self.high)

    def state_dict(self) -> dict[str, Any]:
        """The images and the state of their optimiser and schedule."""
        optimizer = self.optimizer.state_dict()
        return {"images": self.images, "optimizer": optimizer, "epoch": self.schedule.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what gave this `state_dict`."""
        self.images.copy_(state["images"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["epoch"]

    def end_epoch(self) -> None:
        """Advance the schedule of the pixel rate."""
        self.schedule.step()
