import gzip
import hashlib

import numpy as np
import pytest

from nas_blockout.data import DataCorrupt, DataMissing
from nas_blockout.data.downloads import cached, digest, download, read_bytes, require_md5


def test_packed_files_are_unpacked_and_others_read_as_they_are(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content"))
    (tmp_path / "b").write_bytes(b"content")
    assert read_bytes(tmp_path / "a.gz") == read_bytes(tmp_path / "b") == b"content"


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no gzip" + data])
def test_a_damaged_packed_file_is_named(tmp_path, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(b"content" * 50)))
    with pytest.raises(DataCorrupt, match=r"a\.gz must be a whole gzip file, got: .*fetch it again"):
        read_bytes(path)


def test_another_content_is_refused_with_both_checksums(tmp_path):
    expected = hashlib.md5(b"right").hexdigest()
    assert require_md5(b"right", expected, tmp_path) == b"right"
    with pytest.raises(DataCorrupt, match=rf"MD5 {expected}, got [0-9a-f]{{32}} \(5 bytes\)"):
        require_md5(b"wrong", expected, tmp_path)


def test_what_cannot_be_downloaded_is_said_with_the_reason(tmp_path):
    with pytest.raises(DataMissing, match=r"could not be downloaded: .*bring the file to .*wanted"):
        download((tmp_path / "nowhere").as_uri(), tmp_path / "wanted")


def test_arrays_are_made_once_and_then_read(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"images": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": np.array([1, 2])}

    first, second = cached(tmp_path, "key", make), cached(tmp_path, "key", make)
    assert len(made) == 1
    assert first.keys() == second.keys() == {"images", "labels"}
    assert np.array_equal(first["images"], make()["images"])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


def test_without_a_root_arrays_are_made_each_time():
    made = []

    def make():
        made.append(1)
        return {"images": np.zeros(2)}

    cached(None, "key", make)
    cached(None, "key", make)
    assert len(made) == 2


def test_arrays_that_another_process_stored_meanwhile_are_kept(tmp_path):
    def late():
        cached(tmp_path, "key", lambda: {"images": np.ones(2)})
        return {"images": np.ones(2)}

    assert cached(tmp_path, "key", late)["images"].tolist() == [1, 1]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


def test_nothing_is_stored_when_making_fails(tmp_path):
    def fail():
        raise DataCorrupt("a font cannot be read")

    with pytest.raises(DataCorrupt):
        cached(tmp_path, "key", fail)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_damaged_cache_says_which_folder_to_delete(tmp_path):
    cached(tmp_path, "key", lambda: {"images": np.zeros(100)})
    path = tmp_path / "cache" / "key" / "images.npy"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataCorrupt, match=r"cache/key must be readable, .*delete that folder"):
        cached(tmp_path, "key", lambda: {"images": np.zeros(100)})


def test_a_pickle_in_the_cache_is_not_opened(tmp_path):
    folder = tmp_path / "cache" / "key"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    with pytest.raises(DataCorrupt, match="must be readable"):
        cached(tmp_path, "key", lambda: {"images": np.zeros(1)})


def test_a_digest_depends_on_names_and_contents_and_not_on_their_order():
    assert digest({"a": b"1", "b": b"2"}) == digest({"b": b"2", "a": b"1"})
    assert len({digest({"a": b"1", "b": b"2"}), digest({"a": b"2", "b": b"1"}), digest({"a": b"1b:1:2"})}) == 3
