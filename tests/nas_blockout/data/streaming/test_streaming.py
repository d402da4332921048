import numpy as np
import pytest
import torch
from PIL import Image

from nas_blockout.data import DataCorrupt, Loader, StreamedPart
from nas_blockout.data.preprocessing import measure
from nas_blockout.data.streaming import MEASURED_IMAGES, ImageFiles, decode

SIDE = 8


def ramp(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    paths = tuple(folder / f"{number}.png" for number in range(21))
    for path in paths:
        Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(path)
    return ImageFiles(paths, torch.arange(21) % 3, SIDE)


@pytest.fixture(scope="module")
def preprocessing(files):
    return measure(files.scaled())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["none", "shift-flip-cutout"])
def test_batches_are_those_made_from_memory(files, preprocessing, workers, augment):
    memory = files.loaded().normalized(preprocessing)
    streamed = StreamedPart(files, preprocessing, workers=workers)
    for seed in (None, 3):
        passes = [
            list(
                Loader(part, 5, augment=augment).batches(None if seed is None else torch.Generator().manual_seed(seed))
            )
            for part in (memory, streamed)
        ]
        for (images, labels), (others, other_labels) in zip(*passes, strict=True):
            assert torch.allclose(images, others, atol=1e-6)
            assert torch.equal(labels, other_labels)


def test_streaming_consumes_no_global_randomness(files, preprocessing):
    before = torch.get_rng_state()
    list(Loader(StreamedPart(files, preprocessing), 8).batches(torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_streamed_part_offers_what_a_part_in_memory_does(files, preprocessing):
    memory, streamed = files.loaded().normalized(preprocessing), files.normalized(preprocessing).to("cpu")
    assert (len(streamed), streamed.background) == (len(memory), memory.background)
    assert torch.equal(streamed.labels, memory.labels)
    for name in ("shape", "dtype", "device"):
        assert getattr(streamed.images, name) == getattr(memory.images, name)
    assert len(streamed.images) == len(memory.images)
    assert torch.allclose(streamed.images[2:5], memory.images[2:5], atol=1e-6)


def test_what_does_not_fit_into_memory_stays_in_files(files):
    needed = 21 * 3 * SIDE * SIDE * 4
    held = ImageFiles(files.paths, files.labels, SIDE, memory_bytes=needed).loaded()
    assert not isinstance(held, ImageFiles)
    streamed = ImageFiles(files.paths, files.labels, SIDE, memory_bytes=needed - 1)
    assert streamed.loaded() is streamed


def test_a_subset_has_its_own_files_and_labels(files):
    subset = files.at(torch.tensor([4, 20]))
    assert subset.paths == (files.paths[4], files.paths[20])
    assert subset.labels.tolist() == [1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_when_it_is_met(files, preprocessing, tmp_path, workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    part = StreamedPart(
        ImageFiles((*files.paths, broken), torch.zeros(22, dtype=torch.int64), SIDE), preprocessing, workers
    )
    with pytest.raises(DataCorrupt, match=rf"^{broken} must be a whole image, got: .* repair or remove it$"):
        list(Loader(part, 8).batches())


def test_the_middle_square_is_cut_out_at_the_asked_size(tmp_path):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = decode(tmp_path / "wide.png", 10)
    assert image.shape == (3, 10, 10)
    assert image[:, :, 1:-1].min() == 255


def test_shrinking_averages(tmp_path):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
    assert decode(tmp_path / "checks.png", 8)[:, 1:-1, 1:-1].float().sub(127.5).abs().max() < 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.fromarray(ramp(SIDE, SIDE)).convert("RGB").convert(mode).save(path)
    image = decode(path, SIDE)
    assert (image.shape, image.dtype) == (torch.Size((3, SIDE, SIDE)), torch.uint8)
    assert image.max() > 200
    assert image.min() < 60


def test_sixteen_bits_a_pixel_keep_their_range(tmp_path):
    Image.fromarray(ramp(SIDE, SIDE).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(decode(tmp_path / "deep.png", SIDE)[0].numpy(), ramp(SIDE, SIDE))


def test_the_orientation_that_a_camera_recorded_is_applied(tmp_path):
    upright = Image.fromarray(ramp(SIDE, SIDE)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "turned.png", SIDE)[0].numpy(), ramp(SIDE, SIDE))


def test_a_large_set_is_measured_on_evenly_spaced_images(files):
    many = ImageFiles(files.paths * 600, torch.zeros(21 * 600, dtype=torch.int64), SIDE)
    assert MEASURED_IMAGES <= sum(len(batch) for batch in many.scaled()) <= 1.5 * MEASURED_IMAGES
    assert sum(len(batch) for batch in files.scaled()) == 21


def test_a_streamed_part_can_be_moved_without_decoding(preprocessing, tmp_path):
    files = ImageFiles((tmp_path / "not there.png",), torch.zeros(1, dtype=torch.int64), SIDE)
    assert StreamedPart(files, preprocessing).to("cpu").images.device == torch.device("cpu")
