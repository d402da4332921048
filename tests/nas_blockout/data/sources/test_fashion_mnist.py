import gzip
import hashlib

import pytest
import torch

from nas_blockout.data import DataCorrupt, DataMissing, DataSettings, dimensions, load
from nas_blockout.data.sources import fashion_mnist as source
from nas_blockout.data.splits import prepare

NAMES = tuple(source.MD5_UNPACKED)


def idx(shape: tuple[int, ...], values: bytes) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + b"".join(size.to_bytes(4) for size in shape) + values


def miniature(images: int = 40) -> dict[str, bytes]:
    """The four files, with few and small images."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for part, count in (("train", images), ("t10k", 20)):
        pixels = torch.randint(256, (count * 6 * 5,), generator=generator, dtype=torch.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx((count, 6, 5), pixels.numpy().tobytes())
        files[f"{part}-labels-idx1-ubyte"] = idx((count,), bytes(number % 10 for number in range(count)))
    return files


def md5_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(data).hexdigest() for name, data in files.items()}


def settings(folder) -> DataSettings:
    return DataSettings(name="fashion_mnist", folder=str(folder))


@pytest.fixture
def folder(tmp_path):
    for number, (name, data) in enumerate(miniature().items()):
        packed = number % 2 == 0
        (tmp_path / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return tmp_path


def read(folder, files: dict[str, bytes] | None = None):
    return source.read(settings(folder), None, md5=md5_of(files or miniature()))


def test_packed_and_unpacked_files_are_read_and_divided(folder):
    collection = read(folder)
    sizes = [len(collection.train), len(collection.validation), len(collection.load_test())]
    assert sizes == [30, 10, 20]  # with 4 images a class, each class gives one to validation
    assert collection.class_names[0] == "T-shirt/top"
    assert collection.origin == str(folder)
    splits = prepare(collection, train_samples=20, validation_samples=None, split_seed=0)
    assert splits.shape == (1, 6, 5)
    assert splits.train.labels.bincount().tolist() == [2] * 10


def test_pixels_are_those_of_the_file(folder):
    test = read(folder).load_test()
    assert test.images.numpy().tobytes() == miniature()["t10k-images-idx3-ubyte"][16:]


def test_the_test_files_are_not_opened_before_the_test(folder):
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"broken")
    collection = read(folder)
    with pytest.raises(DataCorrupt, match="t10k-images"):
        collection.load_test()


def test_missing_files_are_named_with_the_command_that_gets_them(tmp_path):
    with pytest.raises(DataMissing, match=r"train-images.*apt-get install dataset-fashion-mnist"):
        source.locate(settings(tmp_path), tmp_path, packaged=tmp_path)


def test_files_as_torchvision_leaves_them_are_found(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, data in miniature().items():
        (raw / name).write_bytes(data)
    assert source.locate(DataSettings(name="fashion_mnist"), tmp_path) == raw


def test_an_altered_file_is_refused(folder):
    files = miniature()
    files["train-labels-idx1-ubyte"] += b"\0"
    with pytest.raises(DataCorrupt, match="train-labels-idx1-ubyte must have MD5"):
        read(folder, files)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must begin with an IDX header"),
        (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "must begin with an IDX header of unsigned bytes, got 00000d01"),
        (idx((2, 3), b"12345"), r"announces shape \[2, 3\], but holds 5 values"),
        (idx((2,), b"123"), r"announces shape \[2\], but holds 3 values"),
        (b"\0\0\x08\x03\0\0", "must begin with an IDX header"),
    ],
)
def test_what_is_not_whole_idx_is_refused(tmp_path, data, message):
    with pytest.raises(DataCorrupt, match=message):
        source.parse_idx(data, tmp_path / "file")


@pytest.mark.parametrize("labels", [idx((39,), bytes(39)), idx((40,), bytes([10]) * 40), idx((40, 1), bytes(40))])
def test_labels_that_do_not_fit_the_images_are_refused(tmp_path, labels):
    files = miniature() | {"train-labels-idx1-ubyte": labels}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataCorrupt, match=r"train in .* needs images"):
        read(tmp_path, files)


def test_fetched_files_are_checked_and_found(tmp_path):
    address = tmp_path / "server"
    address.mkdir()
    for name, data in miniature().items():
        (address / f"{name}.gz").write_bytes(gzip.compress(data))
    md5 = md5_of(miniature())
    folder = source.fetch(tmp_path / "root", address=address.as_uri(), md5=md5)
    assert source.locate(DataSettings(name="fashion_mnist"), tmp_path / "root") == folder
    (address / f"{NAMES[0]}.gz").unlink()
    assert source.fetch(tmp_path / "root", address=address.as_uri(), md5=md5) == folder  # nothing is fetched twice


@pytest.mark.parametrize(
    "sent", [gzip.compress(b"something else", mtime=0), b"an error page"], ids=["another archive", "an error page"]
)
def test_a_download_that_is_something_else_is_not_kept(tmp_path, sent):
    address = tmp_path / "server"
    address.mkdir()
    (address / f"{NAMES[0]}.gz").write_bytes(sent)
    with pytest.raises(DataCorrupt, match=NAMES[0]):
        source.fetch(tmp_path / "root", address=address.as_uri())
    assert not list((tmp_path / "root").rglob("*.gz"))


@pytest.mark.skipif(not source.DEBIAN_FOLDER.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_debian_package_is_the_published_data_set():
    splits = load(DataSettings(name="fashion_mnist", validation_samples=100, train_samples=1000))
    assert splits.shape == (1, 28, 28)
    assert splits.test().labels.bincount().tolist() == [1000] * 10
    assert splits.train.labels.bincount().tolist() == [100] * 10
    everything = load(DataSettings(name="fashion_mnist", validation_samples=100))
    assert len(everything.train) == dimensions(DataSettings(name="fashion_mnist")).train_images


def test_fetching_reports_an_unreachable_server(tmp_path):
    with pytest.raises(DataMissing, match="could not be downloaded"):
        source.fetch(tmp_path, address=(tmp_path / "nowhere").as_uri())
