"""Colors and settings that all figures share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from matplotlib import rc_context
from numpy.typing import NDArray

FONT, SMALL = 9.5, 8.5

# No two of these are equal: in an SVG only the value of a color says which variable replaces it. Hence also the paper
# color, which is one step from white: other white stays white.
INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#fffffe"
SHOWN, LOST, HEAT = "#0b6bcb", "#b35c00", "#2f81d8"


@dataclass(frozen=True, slots=True)
class RoleStyle:
    """How the arms of one role are drawn: the marker tells roles apart without the color."""

    color: str
    marker: str


ROLES = {
    "learned": RoleStyle("#0072b2", "o"),
    "placebo": RoleStyle("#b0478a", "D"),
    "ablation": RoleStyle("#b85c00", "s"),
    "baseline": RoleStyle("#57606a", "^"),
}

# Tableau's ten: of medium lightness, so that they are visible on white and on black.
CLUSTERS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#76b7b2",
    "#d8b42c",
    "#9c755f",
    "#ff9da7",
    "#9a9490",
)

# Colors that a page may replace, with the name of the CSS variable that replaces each.
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    SHOWN: "shown",
    LOST: "lost",
    **{style.color: role for role, style in ROLES.items()},
}

_RC: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": FONT,
    "axes.unicode_minus": True,
    "figure.dpi": 72,  # one pixel is one point
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": FONT,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.color": PAPER,
    "hatch.linewidth": 1.2,
    "pdf.fonttype": 42,
    "savefig.dpi": 72,
    "image.composite_image": False,  # images of one axes stay what they are, pixel by pixel
    "svg.fonttype": "none",  # text, which can be searched and read aloud, not outlines
    "svg.hashsalt": "nas_blockout",  # identifiers that do not depend on a random number
    "text.color": INK,
    "text.parse_math": False,  # a $ in the name of an arm or class is not mathematics
    "xtick.color": MUTED,
    "xtick.labelsize": SMALL,
    "xtick.major.size": 2.5,
    "ytick.color": MUTED,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 0,
}

Array = NDArray[np.float64]
P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a function with the matplotlib settings of this project, and restore the previous ones."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context(_RC):  # type: ignore[arg-type]  # any text is not one of its five hundred literals
            return draw(*args, **kwargs)

    return wrapped


def style_of(role: str) -> RoleStyle:
    """Return how a role is drawn; an unknown role is drawn as a baseline."""
    return ROLES.get(role, ROLES["baseline"])


def cluster_color(cluster: int) -> str:
    """Return the color of a cluster; colors repeat after the tenth."""
    return CLUSTERS[cluster % len(CLUSTERS)]
