"""Small packages with entry points, written as pip would install them."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

NETS = '''
from dataclasses import dataclass
from typing import Annotated
from pathlib import Path
from torch import nn
from nas_blockout.settings_fields import Range, check

Path(__file__).with_name("imported").touch()

@dataclass(frozen=True, slots=True)
class NetSettings:
    """Settings of a net.

    Args:
        width: Nodes of the hidden layer.
    """

    width: Annotated[int, Range(ge=1, le=64)] = 8

    def __post_init__(self) -> None:
        check(self)

class Net(nn.Module):
    def __init__(self, settings: NetSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        inputs = shape[0] * shape[1] * shape[2]
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, settings.width), nn.ReLU())
        self.classes = nn.Linear(settings.width, classes)

    def forward(self, x):
        return self.classes(self.layers(x))
'''


def write_package(
    folder: Path, name: str, entries: Mapping[str, Mapping[str, str]], code: str = NETS, *, version: str = "1.0"
) -> Path:
    """Write a package of one module, and return the file that shows that it was imported.

    Args:
        folder: Where to, on the search path of modules.
        name: Of the package; its distribution has hyphens.
        entries: Place of the code by name, by group.
        code: Of the module.
        version: Of the distribution.
    """
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(textwrap.dedent(code))
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    lines = [[f"[{group}]", *(f"{key} = {place}" for key, place in of.items())] for group, of in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(line for of_group in lines for line in of_group))
    return package / "imported"
