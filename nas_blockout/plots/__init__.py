"""The figures of reports and docs; the only importer of matplotlib.

Every figure is a function ``figure_x(values) -> Figure`` of plain values: no pyplot, no global state, nothing to close.
`to_svg`, `to_pdf` and `to_png` write it; the same values always give the same bytes.
"""

from matplotlib.figure import Figure

from nas_blockout.plots.accuracy import (
    Difference,
    Estimate,
    Point,
    figure_accuracy,
    figure_differences,
    figure_front,
    figure_gap,
)
from nas_blockout.plots.block_paths import (
    IMAGES_A_PATH,
    CommonPath,
    Group,
    figure_blocks_by_group,
    figure_common_paths,
    figure_kept_blocks,
)
from nas_blockout.plots.confusion import confusion_differences, confusion_shares, figure_confusion
from nas_blockout.plots.corruption import Corrupted, figure_corruption
from nas_blockout.plots.diagram import figure_architecture
from nas_blockout.plots.groups import Agreed, figure_agreement
from nas_blockout.plots.memberships import (
    extreme_classes,
    figure_clusters_per_class,
    figure_density,
    figure_masks,
    figure_projection,
    project,
)
from nas_blockout.plots.parameters import (
    MOST_LINES,
    Importances,
    Searched,
    figure_importance,
    figure_parallel,
    limits_of,
)
from nas_blockout.plots.samples import Image, Sample, SampleRow, figure_samples
from nas_blockout.plots.spending import MOST_DOTS, Curve, figure_best_so_far, figure_convergence, figure_cost
from nas_blockout.plots.style.svg import standalone, to_pdf, to_png, to_svg

__all__ = [
    "IMAGES_A_PATH",
    "MOST_DOTS",
    "MOST_LINES",
    "Agreed",
    "CommonPath",
    "Corrupted",
    "Curve",
    "Difference",
    "Estimate",
    "Figure",
    "Group",
    "Image",
    "Importances",
    "Point",
    "Sample",
    "SampleRow",
    "Searched",
    "confusion_differences",
    "confusion_shares",
    "extreme_classes",
    "figure_accuracy",
    "figure_agreement",
    "figure_architecture",
    "figure_best_so_far",
    "figure_blocks_by_group",
    "figure_clusters_per_class",
    "figure_common_paths",
    "figure_confusion",
    "figure_convergence",
    "figure_corruption",
    "figure_cost",
    "figure_density",
    "figure_differences",
    "figure_front",
    "figure_gap",
    "figure_importance",
    "figure_kept_blocks",
    "figure_masks",
    "figure_parallel",
    "figure_projection",
    "figure_samples",
    "limits_of",
    "project",
    "standalone",
    "to_pdf",
    "to_png",
    "to_svg",
]
