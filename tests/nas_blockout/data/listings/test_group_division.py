"""Divisions by groups: whole groups, every class in every part, shares as near as groups allow, drawn by the seed."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.data import DataUnsuitable
from nas_blockout.data.listings.group_division import divided_by_groups, group_counts, require_whole_groups

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def images_of(contents: dict[str, list[int]]) -> tuple[torch.Tensor, list[str]]:
    """Labels and groups of images, from the labels of every group."""
    labels = [label for each in contents.values() for label in each]
    return torch.tensor(labels), [name for name, each in contents.items() for _ in each]


@given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=12).filter(lambda labels: len(set(labels)) <= 2),
        min_size=1,
        max_size=25,
    ),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_groups_are_whole_and_every_class_is_everywhere(drawn: list[list[int]], seed: int) -> None:
    ensured = [[label] for label in range(4) for _ in range(3)]  # each class has three groups of its own
    labels, groups = images_of({str(number): each for number, each in enumerate([*drawn, *ensured])})
    parts = divided_by_groups(labels, groups, SHARES, class_names=list("abcd"), seed=seed)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(len(labels)))
    of_groups = [{groups[number] for number in index.tolist()} for index in parts.values()]
    assert sum(map(len, of_groups)) == len(set(groups))
    assert all(set(labels[index].tolist()) == {0, 1, 2, 3} for index in parts.values())
    again = divided_by_groups(labels, groups, SHARES, class_names=list("abcd"), seed=seed)
    assert all(torch.equal(index, again[name]) for name, index in parts.items())


def test_shares_are_those_of_images_where_groups_are_small() -> None:
    contents = {f"{label}-{number}": [label] * (1 + number % 4) for label in (0, 1) for number in range(60)}
    labels, groups = images_of(contents)
    parts = divided_by_groups(labels, groups, SHARES, class_names=["a", "b"], seed=3)
    for name, index in parts.items():
        counts = labels[index].bincount().tolist()
        assert all(abs(count - SHARES[name] * 150) <= 3 for count in counts), (name, counts)


def test_the_seed_decides_where_groups_are_alike() -> None:
    labels, groups = images_of({f"{label}-{number}": [label] * 2 for label in (0, 1) for number in range(10)})
    first, second = (divided_by_groups(labels, groups, SHARES, class_names=["a", "b"], seed=seed) for seed in (0, 1))
    assert not torch.equal(first["test"], second["test"])
    assert [len(index) for index in first.values()] == [24, 8, 8] == [len(index) for index in second.values()]


def test_a_class_with_too_few_groups_is_named() -> None:
    labels, groups = images_of({**{str(n): [0] * 9 for n in range(5)}, "x": [1] * 50, "y": [1] * 50})
    with pytest.raises(DataUnsuitable, match=r"needs 3 groups or more, .* 1 of 2 classes have fewer: 'rare \(2\)'"):
        divided_by_groups(labels, groups, SHARES, class_names=["common", "rare"], seed=0)


def test_groups_that_no_division_separates_are_refused() -> None:
    # The three groups of a go to three parts. Those of b as well, so that z is where r is; and then c, which is in
    # both of them and in k, is in two parts at most.
    contents = {"p": [0, 1], "q": [0, 1], "r": [0, 2], "z": [1, 2], "k": [2]}
    labels, groups = images_of(contents)
    with pytest.raises(DataUnsuitable, match=r"no such division of 5 groups was found for '[abc]', whose groups"):
        divided_by_groups(labels, groups, SHARES, class_names=list("abc"), seed=0)


def test_groups_with_several_classes_are_divided_where_that_is_possible() -> None:
    labels, groups = images_of({"p": [0, 1, 2], "q": [0, 1], "r": [0], "s": [1, 2], "t": [2]})
    parts = divided_by_groups(labels, groups, SHARES, class_names=list("abc"), seed=0)
    assert all(set(labels[index].tolist()) == {0, 1, 2} for index in parts.values())


def test_groups_are_counted_by_class() -> None:
    assert group_counts(torch.tensor([0, 0, 1, 1]), ["a", "b", "b", "b"], 3) == (2, 1, 0)


def test_splits_that_share_a_group_are_refused_by_name() -> None:
    require_whole_groups({"train": ["a", "b"], "test": ["c"]})
    with pytest.raises(DataUnsuitable, match="train and test share 1 group: 'b'"):
        require_whole_groups({"train": ["a", "b"], "test": ["b", "c"]})


def test_large_groups_come_first_so_that_small_ones_fill_up() -> None:
    contents = {"huge": [0] * 55, **{f"s{n}": [0] * 5 for n in range(9)}, **{f"o{n}": [1] * 5 for n in range(20)}}
    labels, groups = images_of(contents)
    parts = divided_by_groups(labels, groups, SHARES, class_names=["a", "b"], seed=0)
    of_first = Counter({name: int((labels[index] == 0).sum()) for name, index in parts.items()})
    assert of_first == {"train": 60, "validation": 20, "test": 20}
