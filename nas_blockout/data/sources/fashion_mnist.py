"""Fashion-MNIST: 60,000 + 10,000 gray images of 28x28 pixels in 10 classes of clothing.

Files are looked for in the given folder, in the data root (`fashion_mnist`, or `FashionMNIST/raw` as torchvision
leaves them), and where the Debian package `dataset-fashion-mnist` puts them; packed or not. Of the 60,000 training
images a stratified tenth is kept for validation.

References:
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017.
"""

import gzip
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_blockout.atomic_files import write_bytes
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.downloads import download, read_bytes, require_md5
from nas_blockout.data.errors import DataCorrupt, DataMissing
from nas_blockout.data.splits import Collection
from nas_blockout.data.subsets import stratified
from nas_blockout.data.tensor_dataset import Labeled

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MD5_UNPACKED: Mapping[str, str] = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
TRAIN_SHARE = 0.9
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# The authors serve the files without encryption; what arrives is checked by its MD5.
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
REMEDY = "run `apt-get install dataset-fashion-mnist` or `nas-blockout data fetch fashion_mnist`"
_UNSIGNED_BYTES = 8  # the format's code for its type of values


def read(settings: DataSettings, root: Path | None, *, md5: Mapping[str, str] = MD5_UNPACKED) -> Collection:
    """Read and divide the training images.

    Args:
        settings: `folder` and `split_seed` are used.
        root: Folder of downloaded data sets.
        md5: Expected MD5 of each unpacked file.

    Raises:
        DataMissing: No folder has all four files.
        DataCorrupt: A file is truncated, altered, or not in IDX format.
    """
    folder = locate(settings, root)
    everything = _read_part(folder, "train", md5)
    train, validation = stratified(everything.labels, (TRAIN_SHARE,), seed=settings.split_seed)
    return Collection(
        train=everything.at(train),
        validation=everything.at(validation),
        load_test=partial(_read_part, folder, "t10k", dict(md5)),  # a copy: the caller may change its own by then
        class_names=CLASSES,
        origin=str(folder),
    )


def locate(settings: DataSettings, root: Path | None, *, packaged: Path = DEBIAN_FOLDER) -> Path:
    """Return the first folder that has all four files."""
    folders = [Path(settings.folder)] if settings.folder else []
    downloaded = [root / "fashion_mnist", root / "FashionMNIST" / "raw"] if root else []
    candidates = [*folders, *downloaded, packaged]
    for folder in candidates:
        if all(_either(folder, name) for name in MD5_UNPACKED):
            return folder
    searched = ", ".join(str(folder) for folder in candidates)
    raise DataMissing(f"fashion_mnist needs its four files ({', '.join(MD5_UNPACKED)}) in one of {searched}; {REMEDY}")


def fetch(root: Path, *, address: str = ADDRESS, md5: Mapping[str, str] = MD5_UNPACKED) -> Path:
    """Download what is not there yet into `root/fashion_mnist` and check it."""
    folder = root / "fashion_mnist"
    for name, expected in md5.items():
        path = folder / f"{name}.gz"
        if not path.exists():
            write_bytes(path, _require_packed(download(f"{address}/{name}.gz", path), expected, path))
    return folder


def parse_idx(data: bytes, path: Path) -> Tensor:
    """Return the array of unsigned bytes in IDX format.

    Raises:
        DataCorrupt: The header is not one of IDX, or announces another number of bytes than there is.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTES or len(data) < 4 + 4 * data[3]:
        raise DataCorrupt(f"{path} must begin with an IDX header of unsigned bytes, got {data[:4].hex()}; {REMEDY}")
    dimensions, start = data[3], 4 + 4 * data[3]
    # Header: two zeros, the type, the number of dimensions, then each dimension as a big-endian 32-bit number
    shape = np.frombuffer(data, dtype=">u4", count=dimensions, offset=4).astype(int).tolist()
    if len(data) - start != np.prod(shape):
        raise DataCorrupt(f"{path} announces shape {shape}, but holds {len(data) - start} values; {REMEDY}")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy())


def _read_part(folder: Path, part: str, md5: Mapping[str, str]) -> Labeled:
    images, labels = (_read_file(folder, f"{part}-{kind}-ubyte", md5) for kind in ("images-idx3", "labels-idx1"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or int(labels.max()) >= len(CLASSES):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise DataCorrupt(f"{part} in {folder} needs images (n, height, width) and labels (n,) in 0..9, got {shapes}")
    return Labeled(images.unsqueeze(1), labels.to(torch.int64))


def _read_file(folder: Path, name: str, md5: Mapping[str, str]) -> Tensor:
    path = _either(folder, name)
    if path is None:
        raise DataMissing(f"{folder / name} was there when the data was located, but is gone; {REMEDY}")
    return parse_idx(require_md5(read_bytes(path), md5[name], path), path)


def _either(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _require_packed(packed: bytes, md5: str, path: Path) -> bytes:
    # The MD5 is that of the content: mirrors pack it differently.
    try:
        require_md5(gzip.decompress(packed), md5, path)
    except (EOFError, OSError) as error:
        raise DataCorrupt(f"the download for {path} must be a whole gzip file, got: {error}; fetch it again") from error
    return packed
