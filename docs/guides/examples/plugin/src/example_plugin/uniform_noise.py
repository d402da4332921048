"""A method: a layer that multiplies nodes by noise in training, and what puts it into a network."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from nas_blockout.methods import Method
from nas_blockout.methods.random_masks import generator_for
from nas_blockout.randomness.draws import Randomness, random_uniforms
from nas_blockout.settings_fields import Range, check


@dataclass(frozen=True, slots=True)
class UniformNoiseSettings:
    """Settings of noise on nodes.

    Args:
        amplitude: Every node is multiplied by a number that is uniform in [1 - amplitude, 1 + amplitude).
        placement: ``hidden``, ``classifier`` or ``all``, as of dropout.
    """

    amplitude: Annotated[float, Range(ge=0, le=1)] = 0.5
    placement: Literal["hidden", "classifier", "all"] = "classifier"

    def __post_init__(self) -> None:
        check(self)


class UniformNoise(nn.Module):
    """Multiply every node by a factor of its own in training; the identity in eval.

    Args:
        settings: The amplitude.
    """

    def __init__(self, settings: UniformNoiseSettings) -> None:
        super().__init__()
        self.amplitude = settings.amplitude

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return `x`, any shape, with noise in training; draws come from the generator and from nowhere else."""
        if not self.training:
            return x
        uniform = random_uniforms(generator_for(self, generator), tuple(x.shape), x.dtype, x.device)
        return x * (1 + self.amplitude * (2 * uniform - 1))


UNIFORM_NOISE = Method(UniformNoiseSettings, "nodes", UniformNoise)
