"""The grid of a space: every combination once and no other, also where parameters depend on each other."""

from dataclasses import replace
from itertools import product

import pytest

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.experiment import Experiment
from search_spaces import SPACES, Context, Recorded, Trial, compose, grid

CONTEXT = Context(Experiment(backbone=ConvNetSettings((16, 24), (20,))), (1, 8, 8), 10)


def conditional(trial: Trial, context: Context) -> Experiment:
    """Only one of the kinds has a depth, and the depth decides how many rates there are."""
    seed = 0
    if trial.suggest_categorical("kind", ["flat", "deep"]) == "deep":
        for layer in range(trial.suggest_int("depth", 1, 2)):
            trial.suggest_float(f"rate{layer}", 0.0, 1.0)
        seed = 1
    assert trial.suggest_categorical("kind", ["flat", "deep"]) in ("flat", "deep")  # asked twice: the same answer
    return replace(context.experiment, seed=seed)


def test_a_grid_has_every_combination_once_in_order() -> None:
    def space(trial: Trial, context: Context) -> Experiment:
        trial.suggest_float("a", 1.0, 100.0, log=True)
        trial.suggest_int("b", 0, 10)
        trial.suggest_int("c", 3, 4)
        trial.suggest_categorical("d", [True, False])
        return context.experiment

    found = [tuple(point.values()) for point in grid(space, CONTEXT, points=3)]
    assert found == list(product([1.0, 10.0, 100.0], [0, 5, 10], [3, 4], [True, False]))


def test_parameters_vary_only_where_they_apply() -> None:
    found = [tuple(point.items()) for point in grid(conditional, CONTEXT, points=2)]
    deep = ("kind", "deep")
    assert found == [
        (("kind", "flat"),),
        *((deep, ("depth", 1), ("rate0", rate)) for rate in (0.0, 1.0)),
        *((deep, ("depth", 2), ("rate0", a), ("rate1", b)) for a, b in product((0.0, 1.0), repeat=2)),
    ]


def test_one_point_is_the_middle_and_no_parameters_are_one_point() -> None:
    (point,) = grid(SPACES["training"], CONTEXT, points=1)
    assert point["optim.lr"] == pytest.approx(CONTEXT.experiment.training.learning_rate)
    assert grid(compose([]), CONTEXT, points=3) == ({},)


@pytest.mark.parametrize("names", [["training"], ["training", "branched"]])
def test_every_point_is_one_that_the_space_takes(names: list[str]) -> None:
    space = compose([SPACES[name] for name in names])
    points = grid(space, CONTEXT, points=2)
    assert len({repr(point) for point in points}) == len(points) == (4 if len(names) == 1 else 4 * 2**6)
    for point in points[:: max(1, len(points) // 20)]:
        space(Recorded(point), CONTEXT)


def test_a_grid_that_is_too_large_is_refused_with_its_size() -> None:
    space = compose([SPACES["training"], SPACES["branched"]])
    with pytest.raises(ValueError, match=r"at most 1,000 points, this one 4,374 \(optim.lr 3 x optim.weight_decay 3 x"):
        grid(space, CONTEXT, points=3)


def test_a_grid_whose_size_shows_only_on_the_way_is_refused_too() -> None:
    def space(trial: Trial, context: Context) -> Experiment:
        for number in range(10 * trial.suggest_int("more", 0, 1)):
            trial.suggest_categorical(f"x{number}", [0, 1, 2])
        return context.experiment

    with pytest.raises(ValueError, match=r"at most 1,000 points, this one .* \(more 2 x x0 3"):
        grid(space, CONTEXT, points=2)
