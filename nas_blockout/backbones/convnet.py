"""A small convolutional network: 3x3 convolutions, the mean over positions, fully connected layers."""

from dataclasses import dataclass
from typing import Annotated

from nas_blockout.backbones.branched import Stage
from nas_blockout.settings_fields import LAYERS, SOME_LAYERS, Range, check


@dataclass(frozen=True, slots=True)
class ConvNetSettings:
    """Settings of the small convolutional network.

    Args:
        channels: Channels of each 3x3 convolution; max pooling by 2 follows each but the last, while positions remain.
        hidden: Nodes of each fully connected layer before the classes.
        normalize_logits: Whether batch normalization without affine parameters follows the classes.
    """

    channels: Annotated[tuple[Annotated[int, Range(ge=1)], ...], SOME_LAYERS] = (16, 32)
    hidden: Annotated[tuple[Annotated[int, Range(ge=1)], ...], LAYERS] = (64,)
    normalize_logits: bool = False

    def __post_init__(self) -> None:
        check(self)


def stages(settings: ConvNetSettings, input_shape: tuple[int, int, int], classes: int) -> tuple[Stage, ...]:
    """Return the stages of the network: ``conv1`` ..., ``features``, ``hidden`` ..., ``classes``.

    Args:
        settings: Widths.
        input_shape: Channels, height and width of an image.
        classes: Number of classes, 1 or more.
    """
    side = min(input_shape[1:])
    area = input_shape[1] * input_shape[2]
    plan = []
    for position, width in enumerate(settings.channels, 1):
        last = position == len(settings.channels)
        pool = 0 if last else 2 if side >= 4 else 1  # a map of 2x2 or 3x3 would shrink to a point
        name = "features" if last else f"conv{position}"
        plan.append(Stage(name, "convolution", width, kernel=3, pool=pool, positions=area))
        if pool == 2:
            # Each pooling drops the last row and column of an odd side.
            side, area = side // 2, (input_shape[1] >> position) * (input_shape[2] >> position)
    numbered = len(settings.hidden) > 1
    plan += [
        Stage(f"hidden{n}" if numbered else "hidden", "linear", width) for n, width in enumerate(settings.hidden, 1)
    ]
    return (*plan, Stage("classes", "linear", classes, activation=False))
