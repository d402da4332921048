"""Lists that many ask for: read once for all of an owner, never older than is promised, and never another's."""

import asyncio
import gc
import threading
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from services.api.app import Server, application
from services.api.caches.list_cache import Lists
from services.store import StoreError
from tests.services.serving import serving

FOR_LONG = 3600.0


@pytest.fixture
def app(caching: Callable[..., FastAPI]) -> FastAPI:
    """The application, whose answers are kept until they are forgotten."""
    return caching(list_seconds=FOR_LONG, status_seconds=FOR_LONG)


def test_all_who_ask_the_same_share_one_reading(client, study, queries):
    ann, again = client("ann"), client("ann", "read")
    ann.post("/v1/studies", json=study)

    def readings() -> int:
        return sum("FROM queue" in statement and "ORDER BY queue.id DESC" in statement for statement in queries)

    assert readings() == 0
    assert len({each.get("/v1/studies").text for each in (ann, again) * 3}) == 1
    assert readings() == 1
    for query in ("limit=1", "state=failed", "state=queued", "prefix=t", "cursor=YmVmb3JlIDE=", "limit=1&prefix=t"):
        ann.get(f"/v1/studies?{query}")
    assert readings() == 7


def test_who_changes_a_study_sees_that_at_once(ann, study, store):
    def listed() -> list[tuple[str, str]]:
        return [(each["name"], each["state"]) for each in ann.get("/v1/studies").json()["studies"]]

    assert listed() == []
    ann.post("/v1/studies", json=study)
    assert listed() == [("tiny", "queued")]
    ann.post("/v1/studies/tiny/cancel")
    assert listed() == [("tiny", "cancelled")]
    ann.post("/v1/studies/tiny/resume")
    assert listed() == [("tiny", "queued")]
    store.acquire_lease("one", seconds=FOR_LONG)
    store.finish_queued("tiny", "one", "complete")
    assert listed() == [("tiny", "queued")]  # by a worker: shown when the answer is half a second old
    ann.post("/v1/studies/tiny/extend", json={"assignments": ["budget.sample_passes=536", "retrain.seeds=[0, 1, 2]"]})
    assert ann.get("/v1/studies").json()["studies"][0]["hash"] == store.queued_study("tiny").config_hash


def test_a_study_that_is_known_is_in_the_list_of_who_gives_it_again(ann, study, store):
    assert ann.get("/v1/studies").json()["studies"] == []
    row = ann.post("/v1/studies", json=study).json()
    ann.get("/v1/studies?limit=1")
    store.request_cancel("tiny")
    ann.post("/v1/studies", json=study)
    assert ann.get("/v1/studies?limit=1").json()["studies"] == [
        {
            **row,
            "state": "cancelled",
            **{key: ann.get("/v1/studies/tiny").json()[key] for key in ("message", "updated_at")},
        }
    ]


def test_a_change_made_elsewhere_shows_when_the_answer_is_old(client, caching, study, store):
    ann = client("ann", to=caching(list_seconds=0.0))
    ann.post("/v1/studies", json=study)
    assert ann.get("/v1/studies").json()["studies"][0]["state"] == "queued"
    store.request_cancel("tiny")
    assert ann.get("/v1/studies").json()["studies"][0]["state"] == "cancelled"


def test_no_owner_is_given_what_another_has_read(client, study, told):
    ann, bob = client("ann"), client("bob")
    ann.post("/v1/studies", json=study)
    for query in ("", "?owner=ann", "?limit=1"):
        assert len(ann.get(f"/v1/studies{query}").json()["studies"]) == 1
        assert bob.get(f"/v1/studies{query}").json() == {"studies": [], "next": None}
    assert ann.get("/v1/studies/tiny").status_code == 200
    told(bob.get("/v1/studies/tiny"), 404, "not_found")
    told(bob.get("/v1/studies/tiny/events"), 404, "not_found")


def test_a_token_that_was_revoked_reads_no_answer_that_is_kept(client, caching, store, told):
    ann = client("ann", to=caching(list_seconds=FOR_LONG, token_seconds=0.0))
    assert ann.get("/v1/studies").status_code == 200
    store.revoke_token(store.tokens("ann")[0].id)
    told(ann.get("/v1/studies"), 401, "unauthorized")


def test_what_was_asked_before_a_change_is_not_given_to_who_asks_after_it():
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go.wait(30)
        return "before"

    async def ask() -> tuple[str, str, str]:
        lists = Lists(fresh_seconds=FOR_LONG)
        first = asyncio.create_task(lists.answer("ann", "all", slow))
        await asyncio.to_thread(begun.wait, 30)
        lists.forget("ann")
        second = await lists.answer("ann", "all", lambda: "after")
        go.set()
        return await first, second, await lists.answer("ann", "all", lambda: "again")

    assert asyncio.run(ask()) == ("before", "after", "after")


def test_who_hangs_up_leaves_the_answer_to_the_others():
    go = threading.Event()

    async def ask() -> str:
        lists = Lists(fresh_seconds=FOR_LONG)
        first = asyncio.create_task(lists.answer("ann", "all", lambda: f"one {go.wait(30)}"))
        second = asyncio.create_task(lists.answer("ann", "all", lambda: "two"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go.set()
        return await second

    assert asyncio.run(ask()) == "one True"


def test_a_reading_that_failed_is_tried_again():
    def fails() -> str:
        raise StoreError("away")

    async def ask() -> str:
        lists = Lists(fresh_seconds=FOR_LONG)
        both = [lists.answer("ann", "all", fails) for _ in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [str(each) for each in found] == ["away", "away"]
        return await lists.answer("ann", "all", lambda: "there again")

    assert asyncio.run(ask()) == "there again"


def test_answers_are_dropped():
    async def ask() -> dict[str, object]:
        lists = Lists(fresh_seconds=0.01)
        for owner in ("ann", "bob"):
            await lists.answer(owner, "all", lambda: "text")
        await asyncio.sleep(0.1)
        return lists._owners

    assert asyncio.run(ask()) == {}


def test_what_is_made_at_first_use_is_made_before_the_first_client(settings, store):
    app, frozen = application(settings, store), gc.get_freeze_count()
    with serving(app, lambda config: Server(config, app)) as address:
        counted = httpx.get(f"{address}/metrics").text
    assert 'nas_blockout_requests_total{method="GET",route="/v1/studies",status="200"} 1.0' in counted
    assert 'route="/v1/studies/{name}/events",status="404"' in counted
    assert gc.get_freeze_count() > frozen  # so that no request waits for a collection of what was imported
