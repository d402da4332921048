"""RandAugment and TrivialAugment: operations drawn from one list, applied to a whole batch of pixels.

Operations, magnitudes and pixels are those of `torchvision.transforms.v2.RandAugment()` and `TrivialAugmentWide()` with
their defaults. These treat one image at a time and draw from torch's global generator; here the draws come from the
generator that is passed, and each operation is applied at once to all images that drew it.

References:
    Cubuk, Zoph, Shlens, Le. RandAugment: Practical Automated Data Augmentation with a Reduced Search Space. 2020.
    Mueller, Hutter. TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation. ICCV 2021.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

RANDAUGMENT_OPERATIONS = 2
BINS = 31  # magnitudes of an operation
RANDAUGMENT_BIN = 9
_HIGHEST = 255
_HOST = "cpu"  # where asking for a value waits for nothing

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
_UNSIGNED = {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}
_SIGNED = torch.tensor([name not in _UNSIGNED for name in OPERATIONS])
_BLENDED = ("Brightness", "Color", "Contrast", "Sharpness")


def draw_randaugment(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return two operations for every image, all of the same magnitude, some of them backwards.

    Args:
        count: Number of images.
        side: Height and width of the images.
        generator: On the processor.

    Returns:
        Shape (4, count), float32: the number of an operation, its magnitude, and the same of the second one.
    """
    height, width = side
    table = _magnitudes(shear=0.3, x=150 / 331 * width, y=150 / 331 * height, rotate=30.0, blend=0.9, bits=4)
    rows = []
    for _ in range(RANDAUGMENT_OPERATIONS):
        operations = torch.randint(len(OPERATIONS), (count,), generator=generator)
        backwards = torch.rand(count, generator=generator) <= 0.5
        rows += [operations.float(), _directed(table[operations, RANDAUGMENT_BIN], operations, backwards)]
    return torch.stack(rows)


def draw_trivialaugment(count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return one operation for every image, of any magnitude up to a large one, some of them backwards.

    Args:
        count: Number of images.
        side: Height and width of the images; not used.
        generator: On the processor.

    Returns:
        Shape (2, count), float32: the number of an operation and its magnitude.
    """
    table = _magnitudes(shear=0.99, x=32.0, y=32.0, rotate=135.0, blend=0.99, bits=6)
    operations = torch.randint(len(OPERATIONS), (count,), generator=generator)
    bins = torch.randint(BINS, (count,), generator=generator)
    backwards = torch.rand(count, generator=generator) <= 0.5
    return torch.stack((operations.float(), _directed(table[operations, bins], operations, backwards)))


@cache
def _magnitudes(*, shear: float, x: float, y: float, rotate: float, blend: float, bits: int) -> Tensor:
    """Return every magnitude of every operation, up to the largest ones, shape (operations, bins), float32."""
    evenly = partial(torch.linspace, 0.0, steps=BINS)
    rows = dict.fromkeys(OPERATIONS, torch.zeros(BINS)) | dict.fromkeys(_BLENDED, evenly(blend))
    rows |= {"ShearX": evenly(shear), "ShearY": evenly(shear), "TranslateX": evenly(x), "TranslateY": evenly(y)}
    rows["Rotate"] = evenly(rotate)
    rows["Posterize"] = (8 - torch.arange(BINS) / ((BINS - 1) / bits)).round()  # bits that are kept
    rows["Solarize"] = torch.linspace(1.0, 0.0, BINS)
    return torch.stack(list(rows.values()))


def _directed(magnitudes: Tensor, operations: Tensor, backwards: Tensor) -> Tensor:
    return torch.where(_SIGNED[operations] & backwards, -magnitudes, magnitudes)


def augment_pixels(images: Tensor, choices: Tensor, background: Tensor | None = None) -> Tensor:
    """Return images after the operations that were drawn for them, one after the other.

    Args:
        images: Shape (n, channels, height, width), uint8, of one channel or three; left as they are.
        choices: As the drawing functions return them, on the device of the images.
        background: Not used: what comes in from outside is black.
    """
    for operations, magnitudes in choices.unflatten(0, (-1, 2)):
        images = _operated(images, operations, magnitudes)
    return images


def _operated(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    first, last = OPERATIONS.index("ShearX"), OPERATIONS.index("Rotate")
    moved = (operations >= first) & (operations <= last)
    matrices = _inverse_matrices(operations, magnitudes.double(), height=images.shape[2], width=images.shape[3])
    images = _where(moved, _moved, images, matrices)
    for name, function in _FUNCTIONS.items():
        images = _where(operations == OPERATIONS.index(name), function, images, magnitudes)
    return images


def _where(chosen: Tensor, function: Callable[[Tensor, Tensor], Tensor], images: Tensor, magnitudes: Tensor) -> Tensor:
    """Return images of which the chosen ones went through a function, with their magnitudes."""
    if images.device.type != _HOST:  # to ask which they are would wait for the device: all go through it
        return torch.where(chosen[:, None, None, None], function(images, magnitudes), images)
    numbers = chosen.nonzero()[:, 0]
    return images.index_copy(0, numbers, function(images[numbers], magnitudes[numbers])) if len(numbers) else images


def _inverse_matrices(operations: Tensor, magnitudes: Tensor, *, height: int, width: int) -> Tensor:
    """Return where pixels come from, in pixels from the middle of the image, shape (n, 2, 3), float64.

    Shears leave the upper left corner where it is. What is another operation has the identity.
    """
    zero, one = torch.zeros_like(magnitudes), torch.ones_like(magnitudes)

    def of(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(operations == OPERATIONS.index(name), value, otherwise)

    cosine, sine = magnitudes.deg2rad().cos(), magnitudes.deg2rad().sin()
    x_by_y = of("ShearX", magnitudes, of("Rotate", -sine, zero))
    y_by_x = of("ShearY", magnitudes, of("Rotate", sine, zero))
    straight = of("Rotate", cosine, one)
    x_shift = of("ShearX", magnitudes * height / 2, of("TranslateX", -magnitudes.trunc(), zero))
    y_shift = of("ShearY", magnitudes * width / 2, of("TranslateY", -magnitudes.trunc(), zero))
    rows = torch.stack((straight, x_by_y, x_shift), 1), torch.stack((y_by_x, straight, y_shift), 1)
    return torch.stack(rows, 1)


def _moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Return images whose pixels come from elsewhere, the nearest pixel of each place; black from outside."""
    count, _, height, width = images.shape
    pixels = torch.ones(height, width, 3, device=images.device)
    pixels[..., 0] = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    pixels[..., 1] = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
    columns, rows = matrices.float().transpose(1, 2).unbind(2)
    scaled = torch.stack((columns / (0.5 * width), rows / (0.5 * height)), 2)
    places = pixels.view(1, -1, 3).expand(count, -1, -1).bmm(scaled).view(count, height, width, 2)
    moved: Tensor = F.grid_sample(images.float(), places, mode="nearest", align_corners=False)
    return moved.to(images.dtype)


def _blend(images: Tensor, others: Tensor, magnitudes: Tensor) -> Tensor:
    """Return images times one plus their magnitude, and others for what is over or missing."""
    magnitudes = magnitudes[:, None, None, None]
    return (images * (1 + magnitudes)).sub_(others * magnitudes).clamp_(0, _HIGHEST).to(images.dtype)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def _brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), magnitudes)


def _color(images: Tensor, magnitudes: Tensor) -> Tensor:
    return _blend(images, _gray(images), magnitudes) if images.shape[1] > 1 else images


def _contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), magnitudes)


def _sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Move away from a blurred image, or towards it; the rim of one pixel stays."""
    channels, height, width = images.shape[1:]
    if min(height, width) <= 2:
        return images
    kernel = torch.full((3, 3), 1 / 13, device=images.device)
    kernel[1, 1] = 5 / 13
    sharpened = images.float()
    blurred = F.conv2d(sharpened, kernel.expand(channels, 1, 3, 3), groups=channels).round_()
    inner = sharpened[:, :, 1:-1, 1:-1]
    inner.sub_((blurred - inner).mul_(magnitudes[:, None, None, None]))
    return sharpened.clamp_(0, _HIGHEST).to(images.dtype)


def _posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    masks: Tensor = 256 - 2 ** (8 - magnitudes.int())
    kept: Tensor = images & masks.to(images.dtype)[:, None, None, None]
    return kept


def _solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    thresholds = (_HIGHEST * magnitudes.double()).float()[:, None, None, None]  # rounded as a number of Python is
    return torch.where(images >= thresholds, _HIGHEST - images, images)


def _autocontrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    from nas_blockout.lazy_torchvision import torchvision  # which takes two seconds, and few trainings need it

    stretched: Tensor = torchvision.transforms.v2.functional.autocontrast(images)
    return stretched


def _equalize(images: Tensor, magnitudes: Tensor) -> Tensor:
    from nas_blockout.lazy_torchvision import torchvision  # as above

    equalized: Tensor = torchvision.transforms.v2.functional.equalize(images)
    return equalized


_FUNCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
