"""The versions of the tables: asked for, taken up, and taken down with what older ones hold kept."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from services import migrations
from services.store import Store, StoreError, schema_version


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url)
    found = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return found


def test_an_empty_database_has_no_version_and_none_is_made(store_url, tmp_path):
    assert schema_version.current(store_url) is None
    assert list(tmp_path.iterdir()) == []
    assert schema_version.upgrade(store_url) == migrations.HEAD
    assert schema_version.current(store_url) == migrations.HEAD


def test_studies_outlive_a_way_down_and_up_and_the_queue_does_not(store_url):
    with Store.open(store_url) as store:
        row = store.create_study("example", config={"x": 1}, config_hash="cafe", arms=["a"])
        store.enqueue("example", document={}, config_hash="cafe", owner="ann")
    schema_version.downgrade(store_url, "0001")
    assert schema_version.current(store_url) == "0001"
    assert not {"queue", "tokens"} & tables(store_url)
    with Store.open(store_url) as store:
        again = store.study("example")
        assert replace(again, uuid=row.uuid) == row
        assert again.uuid not in ("", row.uuid)  # version 0001 has no column for it
        assert store.queue() == ()
    assert schema_version.current(store_url) == migrations.HEAD


def test_a_version_that_is_not_there_or_not_older_is_refused(store_url):
    with pytest.raises(StoreError, match=r"schema version must be one of 0001, 0002, 0003, .*, got '9999'"):
        schema_version.downgrade(store_url, "9999")
    with pytest.raises(StoreError, match="has schema version none, which is older than 0001"):
        schema_version.downgrade(store_url, "0001")
    schema_version.upgrade(store_url)
    schema_version.downgrade(store_url, "0001")
    with pytest.raises(StoreError, match="has schema version 0001, which is older than 0002"):
        schema_version.downgrade(store_url, "0002")


def test_all_versions_are_known():
    assert migrations.versions()[-1] == migrations.HEAD
