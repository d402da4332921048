import gzip
import hashlib
import io
import tarfile
from dataclasses import replace

import pytest
import torch

from nas_blockout.data import DataCorrupt, DataMissing, DataSettings
from nas_blockout.data.sources import cifar as source
from nas_blockout.data.splits import prepare

PER_CLASS = 4
COARSE_OF = (1, 0, 1, 0, 0)


def miniature(version: source.Version) -> source.Version:
    """The same layout with five classes and few images."""
    return replace(version, records=dict.fromkeys(version.records, 5 * PER_CLASS))


def record(label: int, generator: torch.Generator, *, coarse: bool) -> bytes:
    pixels = torch.randint(256, (3072,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    return (bytes([COARSE_OF[label]]) if coarse else b"") + bytes([label]) + pixels


def contents(version: source.Version) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    coarse = version.coarse_names is not None
    files = {
        name: b"".join(record(number % 5, generator, coarse=coarse) for number in range(5 * PER_CLASS))
        for name in (*version.train, version.test)
    }
    files[version.names] = b"ant\nbee\ncat\ndog\nelk\n\n"
    return files | ({version.coarse_names: b"insect\nmammal\n"} if version.coarse_names else {})


def unpacked(folder, version: source.Version):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents(version).items():
        (folder / name).write_bytes(data)
    return folder


def packed(version: source.Version) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in {**contents(version), "../../outside": b"never looked at"}.items():
            member = tarfile.TarInfo(f"{version.folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(stream.getvalue(), mtime=0)


def settings(version: source.Version, folder=None) -> DataSettings:
    return DataSettings(name=version.name, folder=str(folder) if folder else None)


@pytest.fixture(params=[source.CIFAR10, source.CIFAR100], ids=lambda version: version.name)
def version(request):
    return miniature(request.param)


def test_records_are_read_and_divided(tmp_path, version):
    collection = source.read(version, settings(version, unpacked(tmp_path, version)), None)
    images = 5 * PER_CLASS * len(version.train)
    assert len(collection.train) + len(collection.validation) == images
    assert collection.validation.labels.bincount().min() >= 1
    assert collection.class_names == ("ant", "bee", "cat", "dog", "elk")
    splits = prepare(collection, train_samples=None, validation_samples=None, split_seed=0)
    assert splits.shape == (3, 32, 32)


def test_pixels_are_channel_after_channel_and_row_after_row(tmp_path, version):
    folder = unpacked(tmp_path, version)
    test = source.read(version, settings(version, folder), None).load_test()
    first = (folder / version.test).read_bytes()
    start = 2 if version.coarse_names else 1
    assert int(test.labels[0]) == first[start - 1]
    assert int(test.images[0, 1, 2, 3]) == first[start + 1024 + 2 * 32 + 3]


def test_coarse_labels_are_the_hierarchy_of_cifar100(tmp_path, version):
    hierarchy = source.read(version, settings(version, unpacked(tmp_path, version)), None).hierarchy
    assert hierarchy == ({"coarse": COARSE_OF} if version.name == "cifar100" else None)


def test_a_class_in_two_groups_is_refused(tmp_path):
    version = miniature(source.CIFAR100)
    folder = unpacked(tmp_path, version)
    data = bytearray((folder / "train.bin").read_bytes())
    data[0] = 1 - data[0]
    (folder / "train.bin").write_bytes(data)
    with pytest.raises(DataCorrupt, match=r"every class in .* must have one group"):
        source.read(version, settings(version, folder), None)


def test_a_truncated_file_is_refused_with_both_lengths(tmp_path, version):
    folder = unpacked(tmp_path, version)
    path = folder / version.train[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataCorrupt, match=r"must have \d+ bytes, got \d+; delete it, then run `nas-blockout data fetch"
    ):
        source.read(version, settings(version, folder), None)


def test_a_label_without_a_class_is_refused(tmp_path, version):
    folder = unpacked(tmp_path, version)
    (folder / version.names).write_bytes(b"ant\nbee\ncat\ndog\n")
    with pytest.raises(DataCorrupt, match=r"must have labels in 0\.\.3, got 4"):
        source.read(version, settings(version, folder), None)


def test_the_test_file_is_not_opened_before_the_test(tmp_path, version):
    folder = unpacked(tmp_path, version)
    (folder / version.test).write_bytes(b"broken")
    collection = source.read(version, settings(version, folder), None)
    with pytest.raises(DataCorrupt, match=version.test):
        collection.load_test()


def test_missing_files_are_said_with_the_command_that_gets_them(tmp_path, version):
    with pytest.raises(DataMissing, match=rf"looked in {tmp_path}.*nas-blockout data fetch {version.name}"):
        source.locate(version, settings(version), tmp_path)
    with pytest.raises(DataMissing, match="neither a folder nor a data root is given"):
        source.locate(version, settings(version), None)


def test_an_archive_that_is_there_is_to_be_unpacked(tmp_path, version):
    (tmp_path / version.archive).write_bytes(packed(version))
    with pytest.raises(DataMissing, match=rf"run `tar -xzf .*{version.archive} -C {tmp_path}`"):
        source.locate(version, settings(version, tmp_path), None)


def test_files_are_found_in_the_folder_that_the_archive_makes(tmp_path, version):
    folder = unpacked(tmp_path / version.folder, version)
    assert source.locate(version, settings(version, tmp_path), None) == folder


def test_fetching_checks_and_unpacks_what_is_read(tmp_path, version):
    server = tmp_path / "server"
    server.mkdir()
    (server / version.archive).write_bytes(packed(version))
    known = replace(version, archive_md5=hashlib.md5(packed(version)).hexdigest())
    folder = source.fetch(known, tmp_path / "root", address=server.as_uri())
    assert sorted(path.name for path in folder.iterdir()) == sorted(version.files)
    (server / version.archive).unlink()
    assert source.fetch(known, tmp_path / "root", address=server.as_uri()) == folder
    assert len(source.read(known, settings(known), tmp_path / "root").load_test()) == 5 * PER_CLASS


def test_an_archive_put_there_by_hand_is_unpacked_without_a_network(tmp_path, version):
    known = replace(version, archive_md5=hashlib.md5(packed(version)).hexdigest())
    (tmp_path / version.name).mkdir()
    (tmp_path / version.name / version.archive).write_bytes(packed(version))
    folder = source.fetch(known, tmp_path, address="file:///nowhere")
    assert source.locate(known, settings(known), tmp_path) == folder


def test_another_archive_is_refused(tmp_path, version):
    (tmp_path / version.name).mkdir()
    (tmp_path / version.name / version.archive).write_bytes(packed(version))
    with pytest.raises(DataCorrupt, match=version.archive_md5):
        source.fetch(version, tmp_path)
