"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 color images of 32x32 pixels, read from their binary version.

The better known Python version is a pickle, which can run any code when it is opened, and is not read. The unpacked
files are looked for in the given folder and in the data root (`cifar10`, `cifar100`). Of the training images a
stratified tenth is kept for validation. CIFAR-100 keeps its 20 coarse labels as the hierarchy `coarse`.

References:
    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.
"""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_blockout.atomic_files import write_bytes
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.downloads import download, require_md5
from nas_blockout.data.errors import DataCorrupt, DataMissing
from nas_blockout.data.splits import Collection
from nas_blockout.data.subsets import stratified
from nas_blockout.data.tensor_dataset import Labeled

TRAIN_SHARE = 0.9
ADDRESS = "https://www.cs.toronto.edu/~kriz"
_IMAGE_SHAPE = (3, 32, 32)  # a record has all red values first, then green, then blue: already channels first
_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class Version:
    """How one of the data sets is stored.

    Args:
        name: As a source.
        archive: Name of the packed file.
        archive_md5: Its MD5, as its authors publish it.
        folder: Folder inside the archive.
        train: Files of training images.
        test: File of test images.
        records: Images a file.
        names: File of class names, one a line.
        coarse_names: File of the names of the groups, where a record begins with the number of its group.
    """

    name: str
    archive: str
    archive_md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    records: Mapping[str, int]
    names: str
    coarse_names: str | None = None

    @property
    def remedy(self) -> str:
        """How to get the files."""
        return f"run `nas-blockout data fetch {self.name}`"

    @property
    def files(self) -> tuple[str, ...]:
        """All that is read."""
        coarse = (self.coarse_names,) if self.coarse_names else ()
        return (*self.train, self.test, self.names, *coarse)


_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10 = Version(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=_BATCHES,
    test="test_batch.bin",
    records=dict.fromkeys((*_BATCHES, "test_batch.bin"), 10_000),
    names="batches.meta.txt",
)
CIFAR100 = Version(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    archive_md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    records={"train.bin": 50_000, "test.bin": 10_000},
    names="fine_label_names.txt",
    coarse_names="coarse_label_names.txt",
)


def read(version: Version, settings: DataSettings, root: Path | None) -> Collection:
    """Read and divide the training images.

    Args:
        version: `CIFAR10` or `CIFAR100`.
        settings: `folder` and `split_seed` are used.
        root: Folder of downloaded data sets.

    Raises:
        DataMissing: No folder has all files.
        DataCorrupt: A file has the wrong length, or labels that do not exist.
    """
    folder = locate(version, settings, root)
    names = _lines(folder / version.names)
    records = torch.cat([_records(folder / file, version, classes=len(names)) for file in version.train])
    everything = _labeled(records)
    train, validation = stratified(everything.labels, (TRAIN_SHARE,), seed=settings.split_seed)
    return Collection(
        train=everything.at(train),
        validation=everything.at(validation),
        load_test=partial(_read_test, folder, version, len(names)),
        class_names=names,
        hierarchy={"coarse": _coarse(records, folder, version)} if version.coarse_names else None,
        origin=str(folder),
    )


def locate(version: Version, settings: DataSettings, root: Path | None) -> Path:
    """Return the first folder that has all files unpacked."""
    candidates = [Path(settings.folder)] if settings.folder else []
    parents = [*candidates, *([root / version.name, root] if root else [])]
    for folder in [folder for parent in parents for folder in (parent, parent / version.folder)]:
        if all((folder / file).is_file() for file in version.files):
            return folder
    # An archive that was brought by hand only has to be unpacked, not downloaded again.
    packed = next((path for path in (parent / version.archive for parent in parents) if path.is_file()), None)
    remedy = f"run `tar -xzf {packed} -C {packed.parent}`" if packed else version.remedy
    searched = ", ".join(str(parent) for parent in parents) or "no folder (neither a folder nor a data root is given)"
    raise DataMissing(f"{version.name} needs the files of {version.archive}, looked in {searched}; {remedy}")


def fetch(version: Version, root: Path, *, address: str = ADDRESS) -> Path:
    """Download the archive unless it is there, check it, and unpack what is read into `root/<name>/<folder>`."""
    parent = root / version.name
    folder = parent / version.folder
    if all((folder / file).is_file() for file in version.files):
        return folder
    path = parent / version.archive
    packed = path.read_bytes() if path.is_file() else download(f"{address}/{version.archive}", path)
    for file, data in _unpacked(require_md5(packed, version.archive_md5, path), version).items():
        write_bytes(folder / file, data)
    return folder


def _unpacked(packed: bytes, version: Version) -> dict[str, bytes]:
    """Return the members that are read, by name; nothing else in the archive is looked at."""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for file in version.files:
            member = archive.extractfile(f"{version.folder}/{file}")
            assert member is not None  # the archive has the MD5 of one that holds it
            files[file] = member.read()
    return files


def _read_test(folder: Path, version: Version, classes: int) -> Labeled:
    return _labeled(_records(folder / version.test, version, classes=classes))


def _labeled(records: Tensor) -> Labeled:
    images = records[:, -_IMAGE_BYTES:].reshape(-1, *_IMAGE_SHAPE)
    return Labeled(images, records[:, -_IMAGE_BYTES - 1].to(torch.int64))


def _records(path: Path, version: Version, *, classes: int) -> Tensor:
    """Return one row of bytes for each image: the number of its group, if it has one, of its class, its pixels."""
    length = _IMAGE_BYTES + (2 if version.coarse_names else 1)
    expected = version.records[path.name] * length
    data = path.read_bytes()
    if len(data) != expected:
        raise DataCorrupt(f"{path} must have {expected} bytes, got {len(data)}; delete it, then {version.remedy}")
    records = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(-1, length).copy())
    largest = int(records[:, -_IMAGE_BYTES - 1].max())
    if largest >= classes:
        raise DataCorrupt(
            f"{path} must have labels in 0..{classes - 1}, got {largest}; delete it, then {version.remedy}"
        )
    return records


def _coarse(records: Tensor, folder: Path, version: Version) -> tuple[int, ...]:
    """Return the number of every class's group."""
    assert version.coarse_names is not None
    groups = len(_lines(folder / version.coarse_names))
    # The files name the groups but not which classes are in them: that is taken from the pairs that occur in records.
    coarse, fine = torch.unique(records[:, :2].to(torch.int64), dim=0).unbind(1)
    if len(torch.unique(fine)) != len(fine) or int(coarse.max()) >= groups:
        raise DataCorrupt(f"every class in {folder} must have one group in 0..{groups - 1}; {version.remedy}")
    return tuple(coarse[fine.argsort()].tolist())


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip())
