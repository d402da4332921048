"""The table of corruptions: function, parameters at each severity, and how each differs from the paper's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nas_blockout.data.corruptions import blur, digital, noise, weather

Group = Literal["noise", "blur", "weather", "digital"]
Parameters = tuple[float, ...]

SEVERITIES = (1, 2, 3, 4, 5)
_DESIGN_SIDE = 32  # pixels: the published settings are those for CIFAR


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind of corruption.

    Args:
        group: To which it belongs.
        apply: `apply(images, generator, *parameters)`; images (n, channels, height, width) with values in [0, 1].
        parameters: At each of the five severities, for images of 32 pixels.
        names: Of the parameters.
        lengths: Names of those that are pixels, and grow with images larger than 32 pixels.
        tuning: Whether it is one of the four that may be tuned on.
        color: Whether it needs three channels.
        differs: How it differs from the paper's; empty if it does not.
    """

    group: Group
    apply: Callable[..., Tensor]
    names: tuple[str, ...]
    parameters: tuple[Parameters, Parameters, Parameters, Parameters, Parameters]
    lengths: tuple[str, ...] = ()
    tuning: bool = False
    color: bool = False
    differs: str = ""


def _one(*values: float) -> tuple[Parameters, Parameters, Parameters, Parameters, Parameters]:
    first, second, third, fourth, fifth = ((value,) for value in values)
    return first, second, third, fourth, fifth


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption("noise", noise.gaussian_noise, ("deviation",), _one(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption("noise", noise.shot_noise, ("photons",), _one(500, 250, 100, 75, 50)),
    "impulse_noise": Corruption("noise", noise.impulse_noise, ("share",), _one(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(
        "blur",
        blur.defocus_blur,
        ("radius",),
        _one(0.8, 1, 1.2, 1.4, 1.6),
        lengths=("radius",),
        differs="a disk alone, with the spread that the published pair of disk and Gaussian has at 32 pixels",
    ),
    "glass_blur": Corruption(
        "blur",
        blur.glass_blur,
        ("sigma", "reach", "share", "rounds"),
        ((0.25, 1, 0.3, 1), (0.25, 1, 0.6, 1), (0.25, 1, 1, 1), (0.25, 1, 0.8, 2), (0.25, 1, 1, 2)),
        lengths=("sigma", "reach"),
        differs="a growing share, since the published settings are not in the order of their effect; "
        "pixels are truly swapped, where the published code copies one over the other in color images",
    ),
    "motion_blur": Corruption(
        "blur",
        blur.motion_blur,
        ("reach", "sigma"),
        ((6, 1), (6, 1.5), (6, 2), (8, 2.25), (9, 2.5)),
        lengths=("reach", "sigma"),
        differs="lines are read between pixels, where ImageMagick takes the nearest one; at severity 4 sigma is 2.25, "
        "since with 2, the published one, it equals severity 3",
    ),
    "zoom_blur": Corruption(
        "blur",
        blur.zoom_blur,
        ("largest",),
        _one(1.05, 1.10, 1.15, 1.20, 1.25),
        differs="zooms are exact; the published code first cuts to whole pixels",
    ),
    "snow": Corruption(
        "weather",
        weather.snow,
        ("mean", "deviation", "enlarged", "threshold", "reach", "sigma", "kept"),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        lengths=("reach", "sigma"),
    ),
    "procedural_frost": Corruption(
        "weather",
        weather.procedural_frost,
        ("ice",),
        _one(0.3, 0.4, 0.5, 0.6, 0.7),
        differs="the paper's frost lays photographs of frost over the image; this one computes a texture of ridges",
    ),
    "fog": Corruption(
        "weather",
        weather.fog,
        ("density", "decay"),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption("weather", weather.brightness, ("added",), _one(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption("digital", digital.contrast, ("kept",), _one(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        "digital",
        digital.elastic_transform,
        ("strength", "smoothness", "skew"),
        ((0, 0, 0.03), (0.05, 0.2, 0.05), (0.08, 0.06, 0.06), (0.1, 0.04, 0.07), (0.1, 0.03, 0.08)),
        differs="the skew grows with the severity, where the published one shrinks; skew and stretch are read in one "
        "step, so that the image is interpolated once and not twice",
    ),
    "pixelate": Corruption("digital", digital.pixelate, ("share",), _one(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(
        "digital",
        digital.jpeg_compression,
        ("quality",),
        _one(80, 65, 58, 50, 40),
        differs="computed and not written to a file; on average within 2 of 255 levels of libjpeg",
    ),
    "speckle_noise": Corruption(
        "noise", noise.speckle_noise, ("deviation",), _one(0.06, 0.1, 0.12, 0.16, 0.2), tuning=True
    ),
    "gaussian_blur": Corruption(
        "blur", blur.gaussian_blur, ("sigma",), _one(0.4, 0.6, 0.7, 0.8, 1), lengths=("sigma",), tuning=True
    ),
    "spatter": Corruption(
        "weather",
        weather.spatter,
        ("share", "sigma", "strength", "mud"),
        ((0.02, 0.7, 0.5, 0), (0.06, 0.8, 0.5, 0), (0.12, 1, 0.5, 0), (0.3, 0.7, 1, 1), (0.45, 0.7, 1, 1)),
        lengths=("sigma",),
        tuning=True,
        differs="a given share of each image is splashed, and drops are lit evenly, where the published code finds "
        "edges and shades drops by their distance",
    ),
    "saturate": Corruption(
        "digital",
        digital.saturate,
        ("factor", "added"),
        ((1.5, 0), (0.3, 0), (0.1, 0), (2, 0.1), (2.5, 0.2)),
        tuning=True,
        color=True,
        differs="the same five settings in the order of their effect; gray pixels stay and are not tinted red",
    ),
}
TESTING = tuple(name for name, corruption in CORRUPTIONS.items() if not corruption.tuning)


def corrupt(images: Tensor, name: str, *, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt a batch of images.

    Args:
        images: Shape (n, channels, height, width), float with values in [0, 1]: before normalization. One channel is
            gray, three are color.
        name: One of `CORRUPTIONS`.
        severity: In 1..5.
        generator: Source of all draws, on the processor; the result depends on its state alone.

    Returns:
        New images, same shape and type, values in [0, 1].

    Raises:
        ValueError: Name or severity is unknown, the shape is wrong, or the kind needs color.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must lie in 1..5, got {severity}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (n, 1 or 3, height, width), got {tuple(images.shape)}")
    corruption = CORRUPTIONS[name]
    if corruption.color and images.shape[1] != 3:
        raise ValueError(f"{name} changes colors and needs three channels, got {images.shape[1]}; leave it out")
    # Smaller images keep the lengths: below a pixel, blur would have no effect.
    scale = max(1.0, min(images.shape[2:]) / _DESIGN_SIDE)
    values = zip(corruption.names, corruption.parameters[severity - 1], strict=True)
    scaled = [value * scale if key in corruption.lengths else value for key, value in values]
    return corruption.apply(images, generator, *scaled).clamp(0, 1)
