"""A store and its studies have identities that no other store has: names and row numbers occur in all of them."""

import uuid
from pathlib import Path

from services.store import Store


def make(url: str) -> tuple[str, str]:
    """The identities of a store and of the study in it, which is made if need be."""
    with Store.open(url) as store:
        return store.identity(), store.create_study("example", config={}, config_hash="cafe", arms=["a"]).uuid


def test_identities_are_uuids_and_stay(store_url: str) -> None:
    found = make(store_url)
    assert [str(uuid.UUID(text)) for text in found] == list(found)
    assert make(store_url) == found


def test_stores_with_studies_of_one_name_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = (make(f"sqlite:///{tmp_path / name}") for name in ("one.db", "other.db"))
    assert len({*one, *other}) == 4


def test_a_store_that_is_moved_keeps_its_identities(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    found = make(f"sqlite:///{tmp_path / 'old' / 'store.db'}")
    (tmp_path / "old").rename(tmp_path / "new")
    assert make(f"sqlite:///{tmp_path / 'new' / 'store.db'}") == found
