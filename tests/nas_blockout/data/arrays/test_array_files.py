"""A file of arrays is written once, whole, named by its content, and read back as it was or not at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas_blockout.data import ArrayData, DataCorrupt, DataMissing, DataUnsuitable, Dimensions, dimensions, load

rng = np.random.default_rng(1)
LABELS = np.array([0, 1, 2] * 10)
DATA = ArrayData(
    (rng.random((30, 6, 5)), LABELS), (rng.random((6, 6, 5)), LABELS[:6]), (rng.random((9, 6, 5)), LABELS[:9])
)


def test_what_is_read_back_is_what_was_given(tmp_path):
    path = DATA.write(tmp_path)
    assert path == tmp_path / f"{DATA.content}.safetensors"
    loaded, direct = load(DATA.settings(folder=tmp_path)), DATA.splits()
    for name in ("train", "validation"):
        assert torch.equal(getattr(loaded, name).images, getattr(direct, name).images)
        assert torch.equal(getattr(loaded, name).labels, getattr(direct, name).labels)
    assert torch.equal(loaded.test().images, direct.test().images)
    assert loaded.class_names == DATA.class_names
    assert loaded.preprocessing == direct.preprocessing


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    path = DATA.write(tmp_path)
    before = path.stat().st_mtime_ns
    assert DATA.write(tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nas_blockout.data.arrays.array_files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        DATA.write(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_any_change_of_images_labels_or_names_is_another_content():
    train = (np.zeros((6, 4, 4), dtype=np.uint8), [0, 1] * 3)
    train[0][0, 0, 0] = 9
    changed = train[0].copy()
    changed[5, 3, 3] = 1
    same = ArrayData((train[0].copy(), [0, 1] * 3))
    others = [
        ArrayData((changed, train[1])),
        ArrayData((train[0], [1, 0] * 3)),
        ArrayData(train, class_names=["a", "b"]),
        ArrayData(train, train),
    ]
    assert same.content == ArrayData(train).content
    assert len({each.content for each in (same, *others)}) == 5


def test_settings_are_found_in_the_data_root_too(tmp_path):
    DATA.write(tmp_path / "arrays")
    assert len(load(DATA.settings(), root=tmp_path).train) == 30
    with pytest.raises(DataMissing, match="arrays need a folder or a data root"):
        load(DATA.settings())
    with pytest.raises(DataMissing, match=f"must have the file .*{DATA.content}.safetensors, which is not there; give"):
        load(DATA.settings(), root=tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", ["a byte of an image", "cut short", "another file", "no safetensors"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = DATA.write(tmp_path)
    content = path.read_bytes()
    other = ArrayData((np.ones((4, 3, 3), dtype=np.uint8), [0, 1, 0, 1]))
    path.write_bytes(
        {
            "a byte of an image": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
            "cut short": content[: len(content) // 2],
            "another file": other.write(tmp_path).read_bytes(),
            "no safetensors": b"PK\x03\x04",
        }[damage]
    )
    with pytest.raises(DataCorrupt, match=r"is not the file that was written.*elete it"):
        load(DATA.settings(folder=tmp_path)).test()


def test_dimensions_are_known_from_the_header_and_not_guessed_without_the_file(tmp_path):
    settings = DATA.settings(folder=tmp_path)
    assert dimensions(settings) == Dimensions()
    DATA.write(tmp_path)
    assert dimensions(settings) == Dimensions((1, 6, 5), 3, 30)
    assert dimensions(replace(settings, train_samples=9)).train_images == 9
    carved = ArrayData((rng.random((30, 6, 5)), LABELS))
    carved.write(tmp_path)
    assert dimensions(carved.settings(folder=tmp_path)) == Dimensions((1, 6, 5), 3, None)


def test_images_out_of_range_are_never_written(tmp_path):
    data = ArrayData((rng.normal(size=(6, 4, 4)), [0, 1] * 3), in_unit_range=False)
    with pytest.raises(DataUnsuitable, match=r"a study needs images in \[0, 1\]"):
        data.write(tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "arrays"}, "content goes with the source arrays, and it needs one, got None for arrays"),
        ({"name": "digits", "content": "0" * 32}, "content goes with the source arrays"),
        ({"name": "arrays", "content": "../../etc/passwd"}, "content must be 32 hexadecimal digits"),
        ({"name": "arrays", "content": "0" * 32, "image_size": 8}, "image_size is a setting of imagefolder and table"),
    ],
)
def test_settings_that_name_no_file_of_arrays_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(DATA.settings(), **{"content": None, **changes})
