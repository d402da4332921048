"""Batches of two kinds in turn: every image in one of them, the held ones the same in every pass."""

from functools import partial

import pytest
import torch

from nas_blockout.data import AlternatingLoader, Loader, Part
from nas_blockout.settings_fields import Conflict


def part(count: int) -> Part:
    """Images whose values are their numbers."""
    numbers = torch.arange(count)
    return Part(numbers.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), numbers % 3)


def alternating(
    count: int, *, every: int = 2, seed: int = 0, accumulation: int = 1, **options: bool
) -> AlternatingLoader:
    loading = partial(Loader, part(count), 4, **options)
    return AlternatingLoader(
        loading(), lambda rows: loading(rows=rows), every=every, seed=seed, accumulation=accumulation
    )


def numbers(batches: AlternatingLoader, seed: int = 0, first: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [x[:, 0, 0, 0].int().tolist() for x, _ in batches.batches(generator, first)]


@pytest.mark.parametrize(
    ("count", "every", "sizes"),
    [
        (16, 2, [4, 4, 4, 4]),
        (18, 2, [4, 4, 4, 4, 2]),
        (13, 3, [4, 4, 5]),  # a last image alone joins the batch before it
        (22, 3, [4, 4, 4, 4, 4, 2]),
    ],
)
def test_a_pass_has_the_batches_of_one_of_all_images_and_every_image_once(
    count: int, every: int, sizes: list[int]
) -> None:
    loader = alternating(count, every=every)
    for seed in (0, 1):
        found = numbers(loader, seed)
        assert [len(batch) for batch in found] == sizes
        assert sorted(number for batch in found for number in batch) == list(range(count))
        held = {number for batch in found[every - 1 :: every] for number in batch}
        assert held == set(loader.held.tolist()), "the same in every pass, in the last batch of so many"
        assert held.isdisjoint(loader.others.tolist())
    assert len(loader) == count


def test_held_images_are_drawn_by_the_seed_from_anywhere() -> None:
    first, again, other = (alternating(40, seed=seed).held.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert max(first) > 20 > min(first)


def test_a_pass_goes_on_at_any_batch_and_depends_on_the_generator_alone() -> None:
    loader = alternating(30, every=3)
    whole = numbers(loader, 5)
    assert whole == numbers(alternating(30, every=3), 5) != numbers(loader, 6)
    for first in range(len(whole) + 1):
        assert numbers(loader, 5, first) == whole[first:]


def test_batches_of_one_step_of_the_optimizer_are_of_one_kind() -> None:
    loader = alternating(30, accumulation=2)
    held = set(loader.held.tolist())
    kinds = [held.issuperset(batch) for batch in numbers(loader)]
    assert kinds == [False, False, True, True, False, False, True, True]
    with pytest.raises(Conflict, match="needs 3 batches or more"):
        alternating(8, accumulation=2)


def test_balanced_batches_draw_from_their_own_images() -> None:
    loader = alternating(30, balanced=True)
    found = numbers(loader)
    assert {number for batch in found[1::2] for number in batch} <= set(loader.held.tolist())
    assert {number for batch in found[::2] for number in batch} <= set(loader.others.tolist())


def test_without_a_generator_all_images_come_in_order_and_a_sample_is_of_both_kinds() -> None:
    loader = alternating(10)
    assert torch.cat([x[:, 0, 0, 0] for x, _ in loader.batches()]).tolist() == list(range(10))
    (sample,) = loader.sample(10, torch.Generator().manual_seed(0))
    assert sample[:, 0, 0, 0].tolist() == list(range(10))


def test_too_few_batches_are_refused_with_a_remedy() -> None:
    with pytest.raises(
        Conflict, match=r"needs 3 batches or more, .* got 2 of 8 images; make batches smaller"
    ) as caught:
        alternating(8, every=3)
    assert caught.value.keys[0] == "training.batch_size"
