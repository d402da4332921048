"""An architecture that notebooks draw: its groups and branches as a picture, its layers as a table."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nas_blockout.architecture import Architecture
from nas_blockout.interactive.html_text import heading, picture, table
from nas_blockout.structure.branching import Structure, structure_of, summary

LAYER_COLUMNS = ("layer", "nodes before", "nodes", "groups", "connections kept")


@dataclass(frozen=True)
class DrawnArchitecture:
    """An architecture with the names of its classes.

    Args:
        value: The architecture itself.
        class_names: In the order of the classes.
        structure: How far it branches, with its costs; None for what the architecture alone tells.
    """

    value: Architecture
    class_names: tuple[str, ...]
    structure: Structure | None = None

    @cached_property
    def _structure(self) -> Structure:
        return self.structure or structure_of(self.value)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Layers as rows: nodes before and after, groups of nodes, share of the connections between them that exist."""
        return [
            dict(zip(LAYER_COLUMNS, (each.name, each.dense_nodes, each.nodes, each.groups, each.density), strict=True))
            for each in self._structure.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the architecture as plain JSON types."""
        return self.value.to_json()

    def __str__(self) -> str:
        return summary(self._structure, learned=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def _repr_png_(self) -> bytes | None:
        """Return the groups and branches as a picture; None where matplotlib is not installed."""
        return png_of(self.value.to_json(), self.class_names)

    def _repr_html_(self) -> str:
        """Return the picture and the layers as HTML."""
        png = self._repr_png_()
        drawn = picture(png, description=f"groups and branches: {self}") if png is not None else ""
        return heading(str(self)) + drawn + layers_table(self.layers)


def layers_table(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return layers as HTML, without the nodes that there were before where they are not known."""
    columns = [name for name in LAYER_COLUMNS if any(row[name] is not None for row in layers)]
    return table(columns, [[row[name] for name in columns] for row in layers])


def png_of(document: Mapping[str, Any], class_names: Sequence[str]) -> bytes | None:
    """Return an architecture as a picture; None where matplotlib is not installed.

    Args:
        document: The architecture as plain JSON types.
        class_names: In the order of the classes.
    """
    try:
        from nas_blockout.plots import figure_architecture, to_png
    except ModuleNotFoundError:  # of the extra `plots`
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "architecture.png"
        to_png(figure_architecture(document, class_names), path)
        return path.read_bytes()
