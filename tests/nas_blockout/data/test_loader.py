import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.data import Loader, Part
from nas_blockout.data.loader import batch_sizes


def numbered(count: int) -> Part:
    """Images whose every pixel is their label."""
    labels = torch.arange(count)
    return Part(labels.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), labels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_a_generator_images_come_in_order_and_plain():
    part = numbered(10)
    batches = list(Loader(part, 4, augment="shift-flip-cutout").batches())
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), part.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), part.labels)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_shuffled_pass_has_every_image_once_with_its_label(count, batch_size, seed):
    seen = []
    for images, labels in Loader(numbered(count), batch_size).batches(seeded(seed)):
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        seen += labels.tolist()
    assert sorted(seen) == list(range(count))


def test_passes_differ_and_repeat_with_the_generator():
    loader = Loader(numbered(50), 16, augment="shift")
    generator = seeded()
    first, second = list(loader.batches(generator)), list(loader.batches(generator))
    again = list(loader.batches(seeded()))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][1], second[0][1])


@given(st.integers(1, 200), st.integers(2, 50))
@settings(max_examples=50, deadline=None)
def test_no_batch_of_one_image_stands_last(samples, batch_size):
    sizes = batch_sizes(samples, batch_size)
    assert sum(sizes) == samples
    assert max(sizes) <= batch_size + 1
    assert min(sizes) > 1 or samples == 1


@pytest.mark.parametrize("augment", ["none", "shift-flip-cutout"])
@pytest.mark.parametrize("shuffled", [True, False])
def test_a_pass_from_a_batch_on_is_the_rest_of_the_whole_pass(augment, shuffled):
    loader = Loader(numbered(33), 8, augment=augment, balanced=shuffled)
    whole, rest = (list(loader.batches(seeded() if shuffled else None, first)) for first in (0, 2))
    assert len(whole) - 2 == len(rest) > 1
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_length_is_the_number_of_images():
    assert len(Loader(numbered(10), 4)) == 10


def test_global_randomness_is_not_consumed():
    before = torch.get_rng_state()
    list(Loader(numbered(10), 4, augment="shift-flip-cutout").batches(seeded()))
    assert torch.equal(before, torch.get_rng_state())


def test_the_part_is_not_changed_by_augmentation():
    part = numbered(10)
    list(Loader(part, 4, augment="shift-flip-cutout").batches(seeded()))
    assert torch.equal(part.images, numbered(10).images)


@pytest.mark.parametrize(("batch_size", "augment"), [(0, "none"), (4, "rotate")])
def test_wrong_settings_are_refused(batch_size, augment):
    with pytest.raises(ValueError, match="got 0" if batch_size == 0 else "got 'rotate'"):
        Loader(numbered(4), batch_size, augment=augment)


def test_a_sample_is_drawn_from_all_images_each_at_most_once_and_plain():
    loader = Loader(numbered(2000), 16, augment="shift")
    batches = [batch[:, 0, 0, 0] for batch in loader.sample(600, seeded())]
    assert [len(batch) for batch in batches] == [200, 200, 200]
    assert len(torch.cat(batches).unique()) == 600
    assert all(900 < batch.mean() < 1100 for batch in batches), "from all over the split, whatever its order"
    again, other = (torch.cat([*loader.sample(600, seeded(seed))]) for seed in (0, 1))
    assert torch.equal(torch.cat(batches), again[:, 0, 0, 0])
    assert not torch.equal(again, other)
    (all_of_them,) = Loader(numbered(100), 16).sample(300, seeded())
    assert torch.equal(all_of_them, numbered(100).images)
