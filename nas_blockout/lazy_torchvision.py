"""The one door to torchvision: `from nas_blockout.lazy_torchvision import torchvision`.

The wheel of torchvision on the Python package index is compiled for CUDA. Beside a CPU-only torch its compiled
operators do not load, and `import torchvision` then fails while it registers the shapes of two of them, with
`operator torchvision::nms does not exist`. Declaring the two operators lets the import go on. Data sets, transforms,
models and the operators that are written in Python work then; `torchvision.ops.nms` and `torchvision.io.decode_*`,
which are compiled, do not. Where torchvision imports by itself this module changes nothing.
"""

import sys

import torch

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_BOX_FILTER = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_box_filters() -> torch.library.Library:
    """Declare the operators whose shapes torchvision registers unconditionally; they live as long as the result."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}{_BOX_FILTER}")
    return library


def _forget_failed_import() -> None:
    """Drop the half of torchvision that a failed import leaves behind; a second import would trip over it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


try:
    import torchvision.transforms.v2  # v2 is the one part that `import torchvision` leaves out
except RuntimeError as error:
    if _MISSING_OPERATOR not in str(error):
        raise
    _forget_failed_import()
    _OPERATORS = _declare_box_filters()  # kept: the operators vanish with it
    import torchvision.transforms.v2

__all__ = ["torchvision"]
