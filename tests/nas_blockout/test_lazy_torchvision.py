"""The guard around torchvision works in a fresh interpreter, where the first import is the one that may fail."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


WORKS = """
import torch
from nas_blockout.lazy_torchvision import torchvision as ours
torch.manual_seed(0)
y = ours.ops.drop_block2d(torch.ones(8, 4, 9, 9), p=0.3, block_size=3)
print(y.min().item(), y.max().item() > 1, bool((y == 0).any()), tuple(y.shape))
model = ours.models.resnet18(num_classes=3).eval()
print(tuple(model(torch.zeros(2, 3, 32, 32)).shape))
print(tuple(ours.transforms.v2.RandomCrop(8, padding=2)(torch.ones(2, 3, 8, 8)).shape))
import torchvision
print(ours is torchvision)
"""


@pytest.fixture(scope="module")
def worked() -> list[str]:
    """What a fresh interpreter says of all that is used of torchvision, a line a use."""
    return run(WORKS).splitlines()


def test_drop_block_zeroes_blocks_and_rescales_the_rest(worked: list[str]) -> None:
    assert worked[0] == "0.0 True True (8, 4, 9, 9)"


def test_reference_models_build_and_run(worked: list[str]) -> None:
    assert worked[1] == "(2, 3)"


def test_transforms_v2_run(worked: list[str]) -> None:
    assert worked[2] == "(2, 3, 8, 8)"


def test_a_later_plain_import_gets_the_same_module(worked: list[str]) -> None:
    assert worked[3:] == ["True"]


def test_operators_are_not_declared_where_torchvision_imports_by_itself() -> None:
    # The schemas are there already, as with a torchvision whose compiled operators load.
    out = run(
        "import torch\n"
        "library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for name in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, name):\n"
        "        library.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "from nas_blockout import lazy_torchvision as vision; print(hasattr(vision, '_OPERATORS'))"
    )
    assert out == "False"


def test_another_failure_of_the_import_is_not_hidden() -> None:
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchvision': raise RuntimeError('broken in another way')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "try: import nas_blockout.lazy_torchvision\n"
        "except RuntimeError as error: print(error)"
    )
    assert run(code) == "broken in another way"
