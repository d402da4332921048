"""Images on an accelerator, emulated: `meta` is a device of its own that computes shapes, and refuses to be read."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nas_blockout.data import BytePart, Loader, Part, Placement
from nas_blockout.data.augment import AUGMENT, RESIZED_CROP
from nas_blockout.data.preprocessing import Normalization, Preprocessing, measure
from nas_blockout.data.tensor_dataset import Labeled, scaled

COUNT = 40
IN_MEMORY = [name for name, variations in AUGMENT.items() if RESIZED_CROP not in variations]
UNREAD = [name for name in IN_MEMORY if not any(variation.of_pixels for variation in AUGMENT[name])]
READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for an accelerator, and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        devices = [value.device.type for value in args if isinstance(value, torch.Tensor)]
        if name in READING and "meta" in devices:
            self.counts["read"] += 1
        result = operation(*args, **kwargs)
        if (
            isinstance(result, torch.Tensor)
            and name in ("_to_copy", "copy_")
            and len({*devices, result.device.type}) > 1
        ):
            self.counts["to " + result.device.type] += 1
        return result


def pixels(channels: int = 3, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (COUNT, channels, side, side), generator=generator, dtype=torch.uint8)


def labeled(channels: int = 3) -> Labeled:
    return Labeled(pixels(channels), torch.arange(COUNT))


def byte_part(channels: int = 3) -> BytePart:
    images = labeled(channels)
    part = images.normalized(measure(images.scaled()))
    assert isinstance(part, BytePart)
    return part


def every_byte(preprocessing: Preprocessing) -> torch.Tensor:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    return values.expand(1, preprocessing.channels, 16, 16)


@pytest.mark.parametrize(("mean", "std"), [((0.1307,), (0.3081,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_bytes_are_normalized_to_the_bit_as_a_whole_set_was(mean, std):
    preprocessing = Preprocessing(len(mean), 16, 16, mean, std)
    expected = preprocessing.apply(scaled(every_byte(preprocessing)))
    assert torch.equal(preprocessing.on("cpu")(every_byte(preprocessing)), expected)
    # An accelerator divides by a tensor of its own, since it would multiply by the rounded inverse of a number.
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    assert torch.equal(Normalization(mean, std, torch.tensor(255.0))(every_byte(preprocessing)), expected)
    assert isinstance(preprocessing.on("meta").highest, torch.Tensor)
    assert not torch.equal(every_byte(preprocessing).float().mul(1 / 255), scaled(every_byte(preprocessing)))


@pytest.mark.parametrize("augment", IN_MEMORY)
def test_batches_of_bytes_are_those_of_normalized_images(augment):
    part = byte_part()
    whole = Part(part.preprocessing.apply(scaled(pixels())), part.labels, part.background)
    for seed in (None, 3):
        loaders = [Loader(each, 7, augment=augment, preprocessing=part.preprocessing) for each in (part, whole)]
        passes = [
            list(loader.batches(None if seed is None else torch.Generator().manual_seed(seed))) for loader in loaders
        ]
        for (images, labels), (others, other_labels) in zip(*passes, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)


def test_bytes_stay_bytes_and_numbers_of_a_source_are_normalized_once():
    part = byte_part()
    assert part.pixels.nbytes == part.images[:].nbytes / 4
    fractions = Labeled(torch.rand(COUNT, 1, 8, 8), torch.arange(COUNT))
    assert isinstance(fractions.normalized(measure(fractions.scaled())), Part)


def test_images_of_bytes_can_be_indexed_like_a_tensor():
    part = byte_part()
    index = torch.tensor([5, 2])
    assert torch.equal(part.images[index], part.images[:][index])
    assert torch.equal(part.at(index).images[:], part.images[index])
    assert part.at(index).labels.tolist() == [5, 2]
    assert (part.images.shape, part.images.dtype, len(part.images)) == ((COUNT, 3, 8, 8), torch.float32, COUNT)
    assert part.images.device == part.device == torch.device("cpu")


@pytest.mark.parametrize("augment", UNREAD)
@pytest.mark.parametrize("batch_size", [4, 20])
def test_an_epoch_on_a_device_waits_for_nothing_and_copies_no_batch(augment, batch_size):
    loader = Loader(byte_part().placed(Placement("meta")), batch_size, augment=augment)
    with Waits() as waits:
        batches = list(loader.batches(torch.Generator().manual_seed(0)))
    assert all(x.device.type == y.device.type == "meta" for x, y in batches)
    # The order, mean, standard deviation and 255, and the choices of each variation: whatever the number of batches.
    assert waits.counts == {"to meta": 4 + len(AUGMENT[augment])}


def test_the_count_of_waits_sees_them():
    part = byte_part().placed(Placement("meta"))
    with Waits() as waits:
        torch.zeros(3).to("meta")
        with pytest.raises(RuntimeError):
            part.pixels.sum().item()
    assert waits.counts == {"to meta": 1, "read": 1}


@pytest.mark.parametrize("part", [byte_part(), Part(torch.rand(COUNT, 1, 8, 8), torch.arange(COUNT))])
def test_images_that_do_not_fit_stay_and_their_batches_are_copied(part):
    held = part.placed(Placement("meta", memory_share=0))
    kept = held.pixels if isinstance(held, BytePart) else held.images
    assert (kept.device.type, held.device.type) == ("cpu", "meta")
    loader = Loader(held, 10, augment="shift")
    with Waits() as waits:
        batches = list(loader.batches(torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in batches] == [10] * 4
    assert all(images.device.type == "meta" for images, _ in batches)
    assert waits.counts["to meta"] >= 4


def test_on_the_processor_a_placed_part_is_what_it_was():
    part = byte_part()
    placed = part.placed(Placement())
    assert placed.pixels.data_ptr() == part.pixels.data_ptr()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_memory_lies_in_0_to_1(share):
    with pytest.raises(ValueError, match=rf"memory_share must lie in \[0, 1\], got {share}"):
        Placement("cpu", share)
