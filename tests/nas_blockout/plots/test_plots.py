"""Figures show the numbers they are given, are the same bytes every time, and stand alone."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, PathPatch, Rectangle
from sklearn.decomposition import PCA

from nas_blockout import plots
from nas_blockout.plots import memberships, spending
from nas_blockout.plots.style import canvas, labels, theme
from nas_blockout.plots.style.theme import VARIABLES

HOSTILE = '<script>alert("$x^2$")</script>\n\x00 & {{ 1 }} \\frac'
ROLES = ("learned", "placebo", "ablation", "baseline", "unheard-of")


def probabilities(classes: int = 10, clusters: int = 4, nodes: int = 40) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(3)
    return {"features": draws.random((nodes, clusters)), "classes": draws.random((classes, clusters))}


def curves(arms: int = 5, length: int = 30) -> list[plots.Curve]:
    x = tuple(map(float, range(1, length + 1)))
    rise = [0.9 - 0.5 * 0.8**epoch for epoch in range(length)]
    return [
        plots.Curve(
            f"arm-{arm}", ROLES[arm % 5], x, tuple(v - 0.01 * arm for v in rise), tuple(v - 0.1 for v in rise),
            tuple(rise), "n = 5", (length / 2,),
        )
        for arm in range(arms)
    ]  # fmt: skip


def estimates(arms: int = 5, seeds: int = 5) -> list[plots.Estimate]:
    return [
        plots.Estimate(f"arm-{i}", ROLES[i % 5], tuple(0.8 + 0.01 * s for s in range(seeds)), 0.82, (0.8, 0.84))
        for i in range(arms)
    ]


ARCHITECTURE = {
    "schema_version": 1,
    "clusters": 3,
    "layers": [
        {"name": "features", "groups": [{"clusters": [0, 1, 2], "width": 64}]},
        {"name": "hidden", "groups": [{"clusters": [0], "width": 30}, {"clusters": [1, 2], "width": 20}]},
        {
            "name": "classes",
            "groups": [{"clusters": [0], "classes": [2, 4]}, {"clusters": [1, 2], "classes": [0, 1, 3]}],
        },
    ],
}
GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)
GAP = {"blockout": ("learned", {"soft P": [0.8, 0.9], "hard C": [0.7, 0.8]})}

FIGURES: dict[str, Callable[[str], plots.Figure]] = {
    "accuracy": lambda name: plots.figure_accuracy([*estimates(), plots.Estimate(name, "baseline", (), None, None)]),
    "differences": lambda name: plots.figure_differences([plots.Difference(name, "b", 0.01, (-0.01, 0.03), False)]),
    "front": lambda name: plots.figure_front([plots.Point(name, "learned", 10.0, 0.9, (0.8, 0.95))], [0], label="MACs"),
    "gap": lambda name: plots.figure_gap({**GAP, name: GAP["blockout"]}),
    "best": lambda name: plots.figure_best_so_far([*curves(), plots.Curve(name, "baseline", (1.0,), (0.5,))], budget=9),
    "convergence": lambda name: plots.figure_convergence([*curves(), plots.Curve(name, "baseline", (1.0,), (0.5,))]),
    "cost": lambda name: plots.figure_cost({name: {"search": 3.0, "overhead": 1.0}}, label="s", budget=4),
    "density": lambda name: plots.figure_density({name: np.ones((5, 20)) / 20}, {name: [0.5] * 5}, epochs=range(1, 6)),
    "projection": lambda name: plots.figure_projection(probabilities(), [name, *"abcdefghi"])[0],
    "clusters": lambda name: plots.figure_clusters_per_class(np.random.default_rng(0).random((3, 4)), [name, *"abc"]),
    "masks": lambda name: plots.figure_masks({**probabilities(), name: np.full((3, 4), 0.5)}),
    "architecture": lambda name: plots.figure_architecture(ARCHITECTURE, [name, *"abcd"]),
    "confusion": lambda name: plots.figure_confusion(
        {name: np.eye(3), "other": 9 - np.eye(3)}, [name, "b", "c"], reference=name
    ),
    "importance": lambda name: plots.figure_importance([plots.Importances(name, "baseline", 9, {name: (0.9, 0.2)})]),
    "parallel": lambda name: plots.figure_parallel([plots.Searched(name, "baseline", {name: [1, 2], "b": [name, None]},
                                                                  [0.5, float("nan")])]),
    "samples": lambda name: plots.figure_samples([plots.SampleRow(name, name, (plots.Sample(GRAY, name, name),))]),
    "agreement": lambda name: plots.figure_agreement([plots.Agreed(name, "baseline", name, (0.1,), 0.1, (-0.1, 0.2))]),
    "corruption": lambda name: plots.figure_corruption([plots.Corrupted(name, "learned", 0.1, ((1, 0.2), (5, 0.6))),
                                                        plots.Corrupted("b", "baseline", 0.2, ((1, 0.3), (5, 0.5)))]),
}  # fmt: skip


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_svg_is_the_same_every_time_stands_alone_and_survives_any_name(draw: Callable[[str], plots.Figure]) -> None:
    first = plots.to_svg(draw(HOSTILE), name="One Figure", description=HOSTILE)
    assert first == plots.to_svg(draw(HOSTILE), name="One Figure", description=HOSTILE)
    root = ET.fromstring(first)
    assert root.tag.endswith("}svg")
    assert root.attrib["role"] == "img"
    assert "alert(" in root.attrib["aria-label"]
    elements = list(root.iter())
    assert not {element.tag.rpartition("}")[2] for element in elements} & {"script", "metadata", "style", "a"}
    identifiers = [element.attrib["id"] for element in elements if "id" in element.attrib]
    assert len(set(identifiers)) == len(identifiers)
    assert all(name.startswith("one-figure-") for name in identifiers)
    links = [value for e in elements for key, value in e.attrib.items() if key.endswith("href")]
    links += [f"#{name}" for e in elements for name in re.findall(r"url\(#([^)]*)\)", " ".join(e.attrib.values()))]
    assert all(link.startswith("data:image/png;base64,") or link[1:] in identifiers for link in links)
    assert len(first) < 150_000


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_svg_text_is_text_in_colors_a_page_can_replace(draw: Callable[[str], plots.Figure]) -> None:
    root = ET.fromstring(plots.to_svg(draw("name")))
    texts = [element for element in root.iter() if element.tag.endswith("}text")]
    assert any("name" in (text.text or "") for text in texts)
    assert all("font-family" not in text.attrib.get("style", "") for text in texts)
    assert all("var(--" in text.attrib["style"] for text in texts)
    replaced = {color for color, variable in VARIABLES.items() if variable in ("ink", "muted", "grid", "paper")}
    bare = re.findall(r"(?:fill|stroke): (#\w{6})", ET.tostring(root, encoding="unicode"))
    assert not replaced & set(bare)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_a_file_with_a_size_on_white(draw: Callable[[str], plots.Figure]) -> None:
    text = plots.standalone(plots.to_svg(draw("name"), name="one", description="said"))
    root = ET.fromstring(text.partition("\n")[2])
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    assert float(root.attrib["width"]) / float(root.attrib["height"]) == pytest.approx(width / height, rel=0.01)
    ground = root[0]
    assert (ground.attrib["width"], ground.attrib["style"]) == (f"{width:g}", "fill: #ffffff")
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", "said")


def test_png_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        plots.to_png(FIGURES["accuracy"]("arm"), tmp_path / "new" / f"{name}.png", resolution=72)
    first = (tmp_path / "new" / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "new" / "b.png").read_bytes()


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    plots.to_svg(FIGURES["accuracy"]("arm"))
    assert dict(mpl.rcParams) == before


def test_drawing_needs_no_pyplot() -> None:
    code = "import sys, nas_blockout.plots as p; p.to_svg(p.figure_cost({'a': {'search': 1}}, label='s'));"
    command = [sys.executable, "-c", f"{code} assert 'matplotlib.pyplot' not in sys.modules"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])


def test_accuracy_stands_where_it_is() -> None:
    figure = plots.figure_accuracy([plots.Estimate("a", "learned", (0.7, 0.9), 0.8, (0.75, 0.85))])
    dots, interval, mean = figure.axes[0].lines
    assert [list(line.get_xdata()) for line in (dots, interval, mean)] == [[0.7, 0.9], [0.75, 0.85], [0.8]]
    assert "80.00" in plots.to_svg(figure)


def test_only_a_shown_difference_is_filled() -> None:
    pairs = [plots.Difference("a", "b", 0.02, (0.01, 0.03), True), plots.Difference("a", "c", -0.02, None, False)]
    figure = plots.figure_differences(pairs)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [mark.get_markerfacecolor() != theme.PAPER for mark in marks] == [True, False]
    assert [list(mark.get_xdata()) for mark in marks] == [[2.0], [-2.0]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a minus", "b", "c"]


def test_the_front_is_joined_and_the_axis_logarithmic_only_over_a_wide_range() -> None:
    near = [plots.Point("a", "baseline", 10, 0.8, None), plots.Point("b", "baseline", 50, 0.9, None)]
    far = [*near, plots.Point("c", "baseline", 5000, 0.95, None)]
    assert plots.figure_front(near, [0, 1], label="MACs").axes[0].get_xscale() == "linear"
    axes = plots.figure_front(far, [0, 2], label="MACs").axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_xdata()) == [10, 5000]


def test_costs_on_a_logarithmic_axis_are_written_as_amounts_and_not_as_formulas() -> None:
    def shown(least: float, most: float) -> list[str]:
        points = [plots.Point("a", "learned", least, 0.9, None), plots.Point("b", "baseline", most, 0.8, None)]
        axes = plots.figure_front(points, [0, 1], label="MACs").axes[0]
        low, high = axes.get_xlim()
        labels = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        return [label.get_text() for place, label in labels if low < place < high]

    assert shown(40.0, 3000.0) == ["50", "100", "200", "500", "1k", "2k"]
    assert shown(40.0, 3e6) == ["100", "1k", "10k", "100k", "1M"]


def test_late_limits_leave_out_the_first_rise_but_no_end() -> None:
    low = plots.Curve("low", "baseline", (1.0, 2.0), (0.1, 0.2))
    axes = plots.figure_convergence([*curves(), low]).axes[0]
    assert axes.get_ylim()[0] < 0.2
    alone = plots.figure_convergence(curves()).axes[0]
    assert alone.get_ylim()[0] > 0.35


def test_best_so_far_is_drawn_in_steps_past_failed_trials() -> None:
    curve = plots.Curve("a", "baseline", (1.0, 2.0, 3.0), (float("nan"), 0.5, 0.7))
    other = plots.Curve("b", "baseline", (1.0, 2.0), (0.4, 0.4))
    figure = plots.figure_best_so_far([curve, other], budget=5)
    behind = figure.axes[1].collections[0].get_segments()
    np.testing.assert_array_equal(behind[0], [[2, 0.5], [3, 0.5], [3, 0.7]])
    assert figure.axes[0].lines[0].get_drawstyle() == "steps-post"


@given(st.integers(0, 500), st.integers(1, 60))
def test_thinning_keeps_the_ends_and_the_number(count: int, most: int) -> None:
    kept = spending._kept(count, most)
    assert len(kept) <= most + 1
    assert kept == sorted(set(kept))
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


def test_cost_bars_add_up() -> None:
    parts = {"search": 3.0, "search, failed or pruned": 1.0, "retraining": 4.0, "overhead": 0.5}
    bars = [p for p in plots.figure_cost({"a": parts}, label="s").axes[0].patches if isinstance(p, Rectangle)]
    assert sorted(bar.get_width() for bar in bars) == [0.5, 1.0, 3.0, 4.0]
    assert max(bar.get_x() + bar.get_width() for bar in bars) == 8.5


def test_projection_is_that_of_scikit_learn() -> None:
    p = probabilities()
    places, shares = plots.project(p)
    stacked = np.concatenate(list(p.values()))
    oracle = PCA(2).fit(stacked)
    found, expected = np.concatenate(list(places.values())), oracle.transform(stacked)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-12)
    np.testing.assert_allclose(shares, oracle.explained_variance_ratio_, atol=1e-12)


def test_projection_of_equal_nodes_is_one_place() -> None:
    places, shares = plots.project({"classes": np.full((5, 3), 0.5)})
    assert not places["classes"].any()
    assert shares == (0, 0)


def test_mask_is_the_probability_of_a_shared_draw() -> None:
    draws = np.random.default_rng(1)
    p, q = draws.random((3, 4)), draws.random((2, 4))
    found = memberships.kept_probability(p, q)
    for target in range(2):
        for source in range(3):
            lost = np.prod([1 - q[target, c] * p[source, c] for c in range(4)])
            assert found[target, source] == pytest.approx(1 - lost)


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_averaged_masks_keep_their_mean(rows: int, columns: int) -> None:
    small = memberships._averaged(np.full((rows, columns), 0.25))
    np.testing.assert_allclose(small, 0.25)
    assert small.shape == (min(rows, 96), min(columns, 96))


def test_averaging_takes_means_of_blocks() -> None:
    mask = np.repeat(np.arange(192.0)[:, None], 3, axis=1)
    np.testing.assert_allclose(memberships._averaged(mask)[:, 0], np.arange(0.5, 192, 2))


def test_classes_stand_in_the_order_of_their_clusters() -> None:
    expected = np.array([[3.0, 1.0, 2.0], [3.0, 1.4, 2.0]])
    figure = plots.figure_clusters_per_class(expected, ["three", "one", "two"])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["one", "two", "three"]
    many = plots.figure_clusters_per_class(np.random.default_rng(0).random((1, 94)), [chr(33 + i) for i in range(94)])
    assert len(many.axes[0].get_xticklabels()) == 94
    named = plots.figure_clusters_per_class(np.random.default_rng(0).random((1, 94)), [f"class {i}" for i in range(94)])
    assert 1 <= len(named.axes[0].texts) - 2 <= 8


def test_mistakes_are_shares_of_the_true_class() -> None:
    np.testing.assert_allclose(plots.confusion_shares([[6, 2], [0, 0]]), [[0, 0.25], [0, 0]])


def test_confusions_differ_in_shares_and_in_as_many_images_as_the_reference_has() -> None:
    reference, half = [[6, 2], [4, 4]], [[2, 2], [0, 4]]  # of another arm with half as many seeds
    shares, images = plots.confusion_differences(half, reference)
    np.testing.assert_allclose(shares, [[0, 0.25], [-0.5, 0]])
    np.testing.assert_array_equal(images, [[0, 2], [-4, 0]])
    figure = plots.figure_confusion({"best": reference, "other": half}, ["a", "b"], reference="best")
    best, other = ({text.get_text() for text in axes.texts} for axes in figure.axes)
    assert {"2", "4"} <= best
    assert {"+2", "\N{MINUS SIGN}4"} <= other
    many = np.diag([5] * 13) + 1
    crowded = plots.figure_confusion({"best": many}, [str(n) for n in range(13)], reference="best")
    assert [text.get_text() for text in crowded.axes[0].texts] == ["best", "its confusions"], "no room for numbers"


def test_architecture_has_a_box_a_group_and_names_or_counts_every_class() -> None:
    figure = plots.figure_architecture(ARCHITECTURE, list("vwxyz"))
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(boxes) == 5 + 9, "five groups, and a stripe for each of their clusters"
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"64", "30", "20", "x  z", "v  w  y"} <= set(texts)


@given(st.integers(1, 120), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_classes_of_a_group_are_all_named_or_counted(classes: int, length: int) -> None:
    layers = [{"name": "classes", "groups": [{"clusters": [0], "classes": list(range(classes))}]}]
    figure = plots.figure_architecture({"clusters": 1, "layers": layers}, ["m" * length] * classes)
    lines = [text.get_text() for text in figure.axes[0].texts if "m" in text.get_text() or "+" in text.get_text()]
    rest = re.search(r"\+(\d+)$", lines[-1])
    named = sum(len(re.findall(r"m[m\N{HORIZONTAL ELLIPSIS}]*", line)) for line in lines)
    assert named + (int(rest[1]) if rest else 0) == classes
    assert all(canvas.text_width(line, theme.SMALL) <= 104 for line in lines)


def test_groups_that_read_nothing_have_a_dashed_outline() -> None:
    layers = [
        {"name": "hidden", "groups": [{"clusters": [0], "width": 3}, {"clusters": [1], "width": 2, "constant": True}]},
        {
            "name": "classes",
            "groups": [{"clusters": [0, 1], "classes": [0]}, {"clusters": [], "classes": [1], "constant": True}],
        },
    ]
    figure = plots.figure_architecture({"clusters": 2, "layers": layers}, "ab")
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_linewidth()]
    assert [box.get_linestyle() for box in boxes] == ["-", "--", "--", "-"]


def test_layers_of_many_groups_merge_the_smallest() -> None:
    groups = [{"clusters": [c], "width": 40 - c} for c in range(30)]
    classes = {"name": "classes", "groups": [{"clusters": list(range(30)), "classes": [0, 1]}]}
    figure = plots.figure_architecture(
        {"clusters": 30, "layers": [{"name": "hidden", "groups": groups}, classes]}, "ab"
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert f"{sum(40 - c for c in range(15, 30))} in 15" in texts


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_labels_overlap_neither_each_other_nor_the_points(points: list[tuple[float, float]], length: int) -> None:
    figure = canvas.canvas(300, 200)
    axes = canvas.panel(figure, (0, 0, 300, 200))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    written = labels.place_labels(axes, points, ["m" * length] * len(points))
    assert written == len(axes.texts) <= len(points)
    boxes = []
    for text in axes.texts:
        x, y = axes.transData.transform(text.xy) * 72 / figure.dpi + np.array(text.xyann)
        half = canvas.text_width("m" * length, theme.SMALL) / 2
        boxes.append((x - half, y - 4.5, x + half, y + 4.5))
    places = [tuple(axes.transData.transform(point) * 72 / figure.dpi) for point in points]
    slack = 1e-6
    for index, (left, bottom, right, top) in enumerate(boxes):
        assert left >= -slack
        assert right <= 300 + slack
        for a, b, c, d in boxes[:index]:
            assert a >= right - slack or c <= left + slack or b >= top - slack or d <= bottom + slack
        assert not any(left < x < right and bottom < y < top for x, y in places)


def test_required_labels_are_written_even_without_room() -> None:
    figure = canvas.canvas(40, 40)
    axes = canvas.panel(figure, (0, 0, 40, 40))
    assert labels.place_labels(axes, [(0.5, 0.5)] * 9, ["a long name"] * 9) == 0
    assert labels.place_labels(axes, [(0.5, 0.5)] * 9, ["a long name"] * 9, required=True) == 9


@given(st.text(max_size=300), st.floats(20, 200))
@settings(max_examples=50, deadline=None)
def test_shortened_names_fit_on_one_line(text: str, width: float) -> None:
    short = canvas.shorten(text, width)
    assert "\n" not in short
    assert canvas.text_width(short) <= width or len(short) <= 1


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (950, "950"), (999.9, "1k"), (12_000, "12k"), (1_500_000, "1.5M"), (-2e9, "-2G")]
)
def test_amounts_are_short(value: float, text: str) -> None:
    assert canvas.short_amount(value) == text


def test_limits_of_nothing_are_0_and_1() -> None:
    assert canvas.padded([float("nan")]) == (0, 1)
    low, high = canvas.padded([0.5, 0.5])
    assert low < 0.5 < high


def test_a_graph_has_arcs_for_what_is_read_further_away_and_gray_lines_without_masks() -> None:
    stream, block = ([{"clusters": [0, 2], "nodes": [0, 3]}, {"clusters": [1, 2], "nodes": [1]}] for _ in range(2))
    layers = [
        {"name": "stem", "groups": [{"clusters": [2], "nodes": [0, 1]}]},
        {"name": "stream", "groups": stream},
        {"name": "block", "groups": [{**group, "clusters": group["clusters"][:1]} for group in block]},
        {"name": "classes", "groups": [{"clusters": [0], "classes": [0]}, {"clusters": [1], "classes": [1]}]},
    ]
    edges = [[None, "stem"], ["stem", "stream"], ["stream", "block"], ["block", "stream"], ["stream", "classes"]]
    figure = plots.figure_architecture({"clusters": 3, "layers": layers, "edges": edges}, "ab")
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_linewidth()]
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()] == ["2", *"2121", "1", "1"]
    assert len(boxes) == 7
    stripes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and not patch.get_linewidth()]
    assert len(stripes) == 6, "none for the cluster of all that has no masks"
    arcs = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len(arcs) == 2, "back from the block to the stream, and from the stream past the block to the classes"
    gray = [patch for patch in figure.axes[0].patches if patch.get_edgecolor()[:3] == to_rgb(theme.MUTED)]
    assert len([patch for patch in gray if type(patch) is PathPatch]) == 1


def test_masks_of_a_graph_are_those_of_its_edges() -> None:
    figure = plots.figure_masks(probabilities(), [("features", "classes"), ("classes", "features")])
    titles = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text for text in titles if " to " in text] == ["features to classes", "classes to features"]
