"""Importance, parallel coordinates, samples, groups of classes and labels: what is drawn is what was given."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from nas_blockout import plots
from nas_blockout.plots import parameters
from nas_blockout.plots.style import canvas, labels, theme


def test_only_what_is_beyond_chance_is_filled() -> None:
    found = plots.Importances("random", "learned", 12, {"rate": (0.7, 0.4), "width": (0.3, 0.4)})
    axes = plots.figure_importance([found]).axes[0]
    assert [(bar.get_width(), bar.get_facecolor()[3] > 0) for bar in axes.patches] == [(0.7, True), (0.3, False)]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.4, 0.4], [0.4, 0.4]]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["random", "12 trials", "70", "30"]


def test_lines_of_trials_pass_their_parameters_and_end_at_their_accuracy() -> None:
    searched = plots.Searched(
        "random", "learned", {"optim.lr": [0.001, 0.1, 0.01, 0.001], "deep": [True, False, True, False]},
        [0.8, 0.9, 0.85, float("nan")],
    )  # fmt: skip
    axes = plots.figure_parallel([searched]).axes[0]
    places = [[round(float(place), 3) for place in line.get_ydata()] for line in axes.lines]
    assert places[1:] == [[0.0, 1.0, 0.0], [0.5, 1.0, 0.5], [1.0, 0.0, 1.0]]
    assert places[0][:2] == [0.0, 0.0]
    assert math.isnan(places[0][2])
    best = [to_hex(line.get_color()) == theme.ROLES["learned"].color for line in axes.lines]
    assert best == [False, False, False, True]
    assert axes.lines[0].get_linestyle() != "-"
    assert {"lr", "deep", "accuracy (%)", "0.001", "0.1", "False", "True", "80.0", "90.0"} <= {
        text.get_text() for text in axes.texts
    }


@pytest.mark.parametrize(
    ("values", "places", "ends"),
    [
        ([1, 2, 3], [0, 0.5, 1], ("1", "3")),
        ([1, 10, 100], [0, 0.5, 1], ("1", "100")),
        ([-100, 0, 100], [0, 0.5, 1], ("-100", "100")),
        ([5, 5], [0.5, 0.5], ("5", "")),
        ([2.5, None, 1.5], [1, math.nan, 0], ("1.5", "2.5")),
        ([1e-5, 1e-3], [0, 1], ("1e-5", "0.001")),
        (["b", "a", "c"], [0.5, 0, 1], ("a", "c")),
        ([True, None], [0, math.nan], ("True", "")),
        ([None], [math.nan], ("", "")),
    ],
)
def test_values_are_spread_over_an_axis(
    values: list[parameters.Value], places: list[float], ends: tuple[str, str]
) -> None:
    found, low, high = parameters._spread(values)
    np.testing.assert_allclose(found, places, atol=1e-12)
    assert (low, high) == ends


def test_names_are_cut_to_what_tells_them_apart() -> None:
    assert parameters._last_parts(["optim.lr", "blockout.cost_penalty", "a.rate", "b.rate"]) == [
        "lr", "cost_penalty", "a.rate", "b.rate",
    ]  # fmt: skip


def test_images_stand_in_rows_of_six_with_their_texts() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    rows = [plots.SampleRow("dense", "8 alone", tuple(plots.Sample(image, f"c{n}", f"not {n}") for n in range(8)))]
    figure = plots.figure_samples(rows)
    assert [len(axes.images) for axes in figure.axes] == [6, 2]
    assert len({round(axes.get_position().y0, 4) for axes in figure.axes}) == 2
    texts = [text.get_text() for text in figure.texts]
    assert texts[:2] == ["dense", "8 alone"]
    assert {f"not {n}" for n in range(8)} < set(texts)


def test_images_keep_their_shape_and_pixels_in_the_middle_of_a_square() -> None:
    wide = np.arange(32, dtype=np.uint8).reshape(4, 8)
    figure = plots.figure_samples([plots.SampleRow("dense", "", (plots.Sample(wide, "a"), plots.Sample(wide.T, "b")))])
    (axes,) = figure.axes
    assert [tuple(image.get_extent()) for image in axes.images] == [(0, 44, 33, 11), (68.5, 90.5, 44, 0)]
    bounds = axes.get_window_extent()
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert bounds.width / abs(high - low) == pytest.approx(bounds.height / abs(top - bottom))
    drawing = plots.to_svg(figure)
    assert drawing.count("<image ") == 2


def test_extreme_classes_are_the_ends_and_at_most_half_of_all() -> None:
    expected = [[3.0, 1.0, 2.0, 5.0, 4.0], [3.0, 1.0, 2.0, 5.0, 4.0]]
    assert plots.extreme_classes(expected) == ([1, 2], [4, 3])
    assert plots.extreme_classes(expected, most=1) == ([1], [3])
    assert plots.extreme_classes([[1.0]]) == ([], [])


def test_images_of_extreme_classes_stand_below_the_classes() -> None:
    expected = np.array([[1.0, 3.0, 2.0, 2.5]])
    image = np.zeros((8, 8), dtype=np.uint8)
    figure = plots.figure_clusters_per_class(expected, list("abcd"), {0: [image, image], 1: [image]})
    assert sum(len(axes.images) for axes in figure.axes) == 3
    texts = [text.get_text() for text in figure.texts]
    assert [text for text in texts if text] == ["fewest clusters", "a", "1.00", "most clusters", "b", "3.00"]
    alone = plots.figure_clusters_per_class(expected, list("abcd"))
    assert alone.get_size_inches()[1] < figure.get_size_inches()[1]


def test_agreement_stands_where_it_is_with_its_band() -> None:
    rows = [
        plots.Agreed("blockout", "learned", "kind", (0.2, 0.4), 0.3, (-0.1, 0.1)),
        plots.Agreed("random", "baseline", "kind", (-0.05,), -0.05, (-0.1, 0.1)),
    ]
    axes = plots.figure_agreement(rows).axes[0]
    assert [(band.get_x(), round(band.get_width(), 6)) for band in axes.patches] == [(-0.1, 0.2)] * 2
    assert [text.get_text() for text in axes.get_yticklabels()] == ["reference: kind", "blockout", "random"]
    assert [text.get_text() for text in axes.texts] == ["0.30", "\N{MINUS SIGN}0.05"]


def test_a_required_label_stays_inside_even_where_there_is_no_room() -> None:
    figure = canvas.canvas(120, 40)
    axes = canvas.panel(figure, (0, 0, 120, 40))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    crowd = [(0.9, 0.2 + 0.06 * number) for number in range(12)]
    assert labels.place_labels(axes, crowd, ["placebo"] * 12, required=True) == 12
    for text in axes.texts:
        x = axes.transData.transform(text.xy)[0] * 72 / figure.dpi + text.get_position()[0]
        assert canvas.text_width("placebo", theme.SMALL) / 2 - 1e-6 <= x <= 120


def test_a_label_nearer_to_another_point_is_joined_to_its_own() -> None:
    figure = canvas.canvas(300, 300)
    axes = canvas.panel(figure, (0, 0, 300, 300))
    axes.set_xlim(0, 300)
    axes.set_ylim(0, 300)
    walls = [((0.0, y), (300.0, y)) for y in range(0, 300, 4) if not 120 < y < 180]
    walls += [((x, 121.0), (x, 179.0)) for x in range(0, 140, 4)]
    points = [(130.0, 150.0), (150.0, 150.0)]
    labels.place_labels(axes, points, ["first", "second"], lines=walls)
    first, second = axes.texts
    assert first.arrow_patch is not None
    assert second.get_text() == "second"


def test_kept_blocks_are_bars_of_the_mean_and_dots_of_seeds() -> None:
    figure = plots.figure_kept_blocks([[0, 0.5, 0.5], [0, 0.25, 0.75]], [[1.0, 0.5], [1.0, 0.75]])
    above, below = figure.axes
    assert [round(patch.get_height(), 3) for patch in above.patches] == [0, 0.375, 0.625]
    assert [round(patch.get_height(), 3) for patch in below.patches] == [1.0, 0.625]
    assert [len(line.get_xdata()) for line in below.lines] == [2, 2]


def test_blocks_by_group_stand_from_easy_to_hard_and_from_few_to_many() -> None:
    easy, hard = plots.Group("0", 2.0, 0.1, 900), plots.Group("100", 2.5, 0.2, 100)
    classes = [plots.Group("shirt", 2.4, 0.1, 500), plots.Group("bag", 2.1, 0.1, 500)]
    above, below = plots.figure_blocks_by_group([easy, hard], classes).axes
    assert [label.get_text() for label in above.get_xticklabels()] == ["0\n900", "100\n100"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["bag", "shirt"]


def test_common_paths_are_strips_with_their_images() -> None:
    image = np.zeros((8, 8), dtype=np.uint8)
    paths = [
        plots.CommonPath((True, False, True), 0.7, (image,) * 9),
        plots.CommonPath((True, True, True), 0.3, (np.zeros((8, 8, 3), dtype=np.uint8),)),
    ]
    figure = plots.figure_common_paths(paths)
    assert [text.get_text() for text in figure.texts] == [
        "70% of the images, 2 of 3 blocks", "30% of the images, 3 of 3 blocks",
    ]  # fmt: skip
    assert len([axes for axes in figure.axes if axes.images]) == 2 + plots.IMAGES_A_PATH + 1
