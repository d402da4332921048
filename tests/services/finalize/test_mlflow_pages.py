"""Where a study's pages in MLflow are, as people and the report are told."""

import json
from pathlib import Path

import pytest

from services.finalize.mlflow_pages import full_addresses, has_server, pages_of
from services.settings import Settings
from services.store import PAGES_TARGET, Store

PAGES = {"arms": "#/experiments/1/runs?viewStateShareKey=nas-arms"}


def read(**values: str) -> Settings:
    return Settings.from_environment({f"NAS_BLOCKOUT_{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("values", "base", "is_there"),
    [
        ({}, "http://127.0.0.1:5000", False),
        ({"TRACKING_URI": "https://ann:secret@mlflow.example/x/"}, "https://mlflow.example/x", True),
        (
            {"TRACKING_URI": "http://mlflow:5000", "MLFLOW_URL": "https://people.example"},
            "https://people.example",
            True,
        ),
        ({"TRACKING_URI": "none", "MLFLOW_URL": "https://people.example"}, "https://people.example", True),
    ],
)
def test_pages_are_where_people_open_mlflow(values: dict[str, str], base: str, is_there: bool) -> None:
    settings = read(**values)
    assert full_addresses(settings, PAGES) == {"arms": f"{base}/{PAGES['arms']}"}
    assert has_server(settings) == is_there


def test_there_are_no_pages_without_mlflow() -> None:
    assert full_addresses(read(TRACKING_URI="none"), PAGES) == {}


def test_pages_are_those_that_the_store_was_told_last(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.create_study("one", config={"name": "one"}, config_hash="cafe", arms=["dense"])
        assert pages_of(store, "one") == pages_of(store, "no-such-study") == {}
        store.record_projection("one", target=PAGES_TARGET, external_id=json.dumps({"arms": "#/old"}))
        store.record_projection("one", target=PAGES_TARGET, external_id=json.dumps(PAGES))
        assert pages_of(store, "one") == PAGES
