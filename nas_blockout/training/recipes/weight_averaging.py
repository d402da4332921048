"""The exponential moving average of a network's weights, and the exchange with those that are trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas_blockout.batch_statistics import normalizations


class WeightAverage:
    r"""The exponential moving average of the weights of a network over the steps of the optimizer.

    .. math:: a_1 = w_1, \qquad a_t = d\, a_{t-1} + (1 - d)\, w_t

    where w are the weights after a step and d is `decay`, as in `torch.optim.swa_utils`. `exchange` puts the averaged
    weights into the network and keeps the trained ones, or puts these back; with the weights go the statistics of
    batch normalization, since those of the averaged network are estimated for it alone.

    Args:
        model: On its device; those of its parameters that require a gradient are averaged.
        decay: In [0, 1).

    References:
        Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. SIAM Journal on Control and
        Optimization 30 (4), 1992.
        Tarvainen, Valpola. Mean Teachers Are Better Role Models. NIPS 2017, eq. 2.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.in_use = False  # whether the network has the averaged weights
        self._weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        modules = {id(module): name for name, module in model.named_modules()}
        self._statistics = {
            f"{modules[id(norm)]}.{name}": getattr(norm, name)
            for norm in normalizations(model)
            for name in ("running_mean", "running_var")
        }
        self._kept = {name: value.detach().clone() for name, value in self._exchanged().items()}

    def _exchanged(self) -> dict[str, Tensor]:
        return {**self._weights, **self._statistics}

    @torch.no_grad()
    def update(self) -> None:
        """Average in the weights after a step of the optimizer."""
        kept = [self._kept[name] for name in self._weights]
        weights: list[Tensor] = list(self._weights.values())
        if self.steps == 0:
            torch._foreach_copy_(kept, weights)
        else:
            torch._foreach_lerp_(kept, weights, 1 - self.decay)
        self.steps += 1

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange what the network has for what is kept: averaged for trained weights, or the other way round."""
        for name, value in self._exchanged().items():
            held = value.clone()
            value.copy_(self._kept[name])
            self._kept[name].copy_(held)
        self.in_use = not self.in_use

    def state(self) -> dict[str, Tensor]:
        """Return what is kept, by name, the number of steps, and what the network has; holds references."""
        return {**self._kept, "steps": torch.tensor(self.steps), "in_use": torch.tensor(self.in_use)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Read back what `state` returned, for a network that has its state of the same moment."""
        for name, value in self._kept.items():
            value.copy_(state[name])
        self.steps = int(state["steps"])
        self.in_use = bool(
            state.get("in_use", True)
        )  # of a checkpoint after an epoch, which may be of an older version
