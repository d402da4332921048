"""What a policy did on the training images of an epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_blockout.methods.paths.block_routing import path_statistics
from nas_blockout.training_protocol import TelemetryValue

_Taken = tuple[Tensor, Tensor]


class PathRecord:
    """The paths that images took, and what these earned; they stay on their device until they are described."""

    def __init__(self) -> None:
        self._taken: list[_Taken] = []

    def add(self, taken: _Taken) -> None:
        """Add those of a batch: kept blocks, bool, shape ``(batch, blocks)``, and rewards, shape ``(batch,)``."""
        self._taken.append(taken)

    def state(self) -> list[_Taken]:
        """Return what was added, in order."""
        return list(self._taken)

    def load(self, states: Sequence[Sequence[_Taken]], device: torch.device | str = "cpu") -> None:
        """Hold what one or more records held, one after another, in place of what was added."""
        self._taken = [(keep.to(device), reward.to(device)) for state in states for keep, reward in state]

    def telemetry(self) -> dict[str, TelemetryValue]:
        """Describe the paths: blocks, share by block, distinct paths, reward; empty if there are none."""
        if not self._taken:
            return {}
        keep, reward = (torch.cat(parts).cpu() for parts in zip(*self._taken, strict=True))
        statistics = path_statistics(keep)
        return {
            "blockdrop/blocks/mean": statistics.mean,
            "blockdrop/blocks/sd": statistics.sd,
            "blockdrop/blocks/kept": keep.double().mean(0).tolist(),
            "blockdrop/paths": float(statistics.distinct),
            "blockdrop/reward": float(reward.double().mean()),
        }
