"""The division of layers into operations: what is read is right, and the forms chosen are expected to take least."""

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.backbones.inference_cost import (
    BATCHES,
    LEAST_SAVED,
    MARGIN,
    Folded,
    FoldedLayer,
    Form,
    Place,
    cut_for_readers,
    expected_times,
    fastest_forms,
    parts_of,
    pieces_of,
    places_after,
    time_at,
)

IMAGE = (Place(0, 3, 0, 0, 3),)


def operation(width: int, *ranges: tuple[int, int], kernel: int = 3) -> Folded:
    inputs = sum(stop - start for start, stop in ranges)
    shape = (width, inputs, kernel, kernel) if kernel else (width, inputs)
    return Folded(torch.empty(shape), torch.empty(width), ranges)


def branched(branches: int, width: int, *, shared: int = 0, positions: int = 64) -> list[FoldedLayer]:
    """A trunk, two layers of equal branches, and nodes that every branch reads, if asked for."""
    trunk = FoldedLayer((operation(width, (0, 3)),), positions)
    first = FoldedLayer((operation(width * branches + shared, (0, width)),), positions)
    last = (width * branches, width * branches + shared)
    spans = [((b * width, (b + 1) * width), *([last] if shared else [])) for b in range(branches)]
    own = [operation(width, *span) for span in spans]
    every = [operation(shared, (0, last[1]))] if shared else []
    layers = [trunk, first, FoldedLayer((*own, *every), positions), FoldedLayer((*own, *every), positions)]
    return list(cut_for_readers(layers))


def test_layers_are_cut_where_what_reads_them_begins_and_ends() -> None:
    trunk, first, second, last = branched(3, 4, shared=5)
    assert [len(each.bias) for each in first.operations] == [4, 4, 4, 5]
    assert [each.ranges for each in first.operations] == [((0, 4),)] * 4
    assert first.units == ((0, 1, 2, 3),), "still one operation"
    assert second.units == ((0,), (1,), (2,), (3,))
    assert [layer.shared for layer in (trunk, first, second, last)] == [(0,), (3,), (3,), ()]


def test_slots_stand_in_the_order_in_which_they_read() -> None:
    layers = branched(3, 4, shared=5)
    own = layers[2].operations
    turned = FoldedLayer((own[2], own[3], own[0], own[1]), 64, shared=(1,))
    before = parts_of(layers[1], (Place(0, 4, 0, 0, 4),), "summed")
    places = places_after(layers[1], before)
    assert [part.slots for part in before] == [((0,), (1,), (2,)), ((3,),)]
    private, shared = parts_of(turned, places, "summed")
    assert (private.slots, shared.slots) == (((2,), (3,), (0,)), ((1,),))
    assert [term.groups for term in private.terms] == [3, 1]
    assert [term.pieces for term in private.terms] == [((0, 0, 48),), ((1, 0, 16),)]


def test_it_may_be_slower_than_whole_where_the_parent_is_slower_still() -> None:
    layers = branched(2, 24, positions=16)
    parent = [FoldedLayer((operation(width, (0, read)),), 16) for read, width in ((3, 256), *[(256, 256)] * 3)]
    alone, with_parent = fastest_forms(layers, IMAGE), fastest_forms(layers, IMAGE, parent=parent)
    bound = expected_times(parent, IMAGE, ["whole"] * 4)
    assert all(a <= b for a, b in zip(expected_times(layers, IMAGE, with_parent), bound, strict=True))
    assert sum(expected_times(layers, IMAGE, with_parent)) <= sum(expected_times(layers, IMAGE, alone))


def test_every_form_covers_every_node_once() -> None:
    layer = branched(4, 6, shared=5)[2]
    for form in get_args(Form):
        parts = parts_of(layer, (Place(0, 29, 0, 0, 32),), form)
        assert sorted(member for part in parts for member in part.members) == [0, 1, 2, 3, 4]
        places = places_after(layer, parts)
        assert [place.start for place in places] == [0, 6, 12, 18, 24]
        assert places[-1].stop == 29
    assert [part.members for part in parts_of(layer, IMAGE, "split")] == [(0, 1, 2, 3), (4,)]
    assert [len(part.slots) for part in parts_of(layer, IMAGE, "split")] == [4, 1]
    assert [part.members for part in parts_of(layer, IMAGE, "whole")] == [(0, 1, 2, 3, 4)]


def test_nodes_that_stand_side_by_side_are_read_as_one_piece() -> None:
    places = (Place(0, 4, 0, 0, 4), Place(4, 6, 1, 0, 2), Place(6, 10, 0, 4, 4))
    assert pieces_of([(1, 3)], places) == ((0, 1, 3),)
    assert pieces_of([(0, 6)], places) == ((0, 0, 4), (1, 0, 2))
    assert pieces_of([(2, 4), (6, 7)], places) == ((0, 2, 5),)


@given(
    branches=st.integers(2, 5),
    width=st.integers(1, 200),
    shared=st.integers(0, 100),
    positions=st.sampled_from([1, 16, 256]),
    batch=st.sampled_from([None, 1, 30, 256, 1000]),
)
@settings(max_examples=50, deadline=None)
def test_a_divided_network_is_expected_to_take_less_than_whole_layers_by_more_than_the_margin(
    branches: int, width: int, shared: int, positions: int, batch: int | None
) -> None:
    layers = branched(branches, width, shared=shared, positions=positions)
    forms, counted = fastest_forms(layers, IMAGE, batch=batch), BATCHES if batch is None else (batch,)
    assert forms == fastest_forms(layers, IMAGE, batch=batch)
    whole = expected_times(layers, IMAGE, ["whole"] * 4)

    def shares(chosen: tuple[Form, ...]) -> list[float]:
        return [time_at(each, expected_times(layers, IMAGE, chosen)) / time_at(each, whole) for each in counted]

    def is_allowed(chosen: tuple[Form, ...]) -> bool:
        return max(shares(chosen)) <= 1 - MARGIN

    assert is_allowed(forms) or forms == ("whole",) * 4
    others = [each for each in product(get_args(Form), repeat=4) if is_allowed(each)]
    least = min([sum(shares(each)) for each in others], default=len(counted))
    assert sum(shares(forms)) <= least + 2 * LEAST_SAVED * len(counted), "found without trying all of them"


def test_times_lie_on_the_line_through_those_for_one_image_and_for_many() -> None:
    times = expected_times(branched(2, 16), IMAGE, ["whole"] * 4)
    assert [time_at(batch, times) for batch in BATCHES] == list(times)
    assert time_at(511, times) - times[1] == pytest.approx(times[1] - times[0])


def test_the_number_of_images_decides_how_a_layer_is_divided() -> None:
    layers = branched(8, 16, shared=32)
    found = {batch: fastest_forms(layers, IMAGE, batch=batch) for batch in (1, 64, 256)}
    assert found[1] == ("whole",) * 4, "calls cost more than they save"
    assert "summed" in found[256]
    assert found[64] == found[256]


def test_wide_branches_are_divided_and_narrow_ones_are_not() -> None:
    assert "whole" not in fastest_forms(branched(2, 256), IMAGE)[2:]
    assert set(fastest_forms(branched(8, 2, positions=4), IMAGE)) == {"whole"}
