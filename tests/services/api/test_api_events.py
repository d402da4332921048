"""Following a study: its progress as it changes, what happened to it, its end; and going on after a break."""

import asyncio
import json
import threading
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa

from services.api import application
from services.api.caches.status_cache import Watcher
from services.api.event_stream import Feeds, follow
from services.api.health import Probes
from services.store import Store, StoreError

FOR_LONG = 600.0


def parsed(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in lines:
        if not line:
            if "event" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            key, _, value = line.partition(": ")
            event[key] = value


@pytest.fixture
def running(ann, study, store: Store) -> int:
    """A trial that runs of a study that a worker holds."""
    ann.post("/v1/studies", json=study)
    row = store.acquire_lease("one", seconds=FOR_LONG)
    store.create_study("tiny", config=row.document, config_hash=row.config_hash, arms=["dense", "dropout"])
    trial = store.add_trial("tiny", arm="dense", phase="search", number=0, seed=0, experiment={}, planned=100).id
    store.start_attempt(trial)
    return trial


def end(store: Store, trial: int) -> None:
    store.record_epochs(trial, [{"epoch": 0, "sample_passes": 201, "seconds": 1.0}])
    store.finish_trial(trial, "complete", score=0.75, result={})
    store.finish_study("tiny", "complete")
    store.finish_queued("tiny", "one", "complete", message="well done")


def test_progress_is_told_until_the_end(ann, running, store):
    with ann.stream("GET", "/v1/studies/tiny/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = parsed(answer.iter_lines())
        first, second = next(events), next(events)
        assert (first["event"], json.loads(first["data"])["kind"]) == ("happened", "created")
        assert second["event"] == "progress"
        progress = json.loads(second["data"])
        assert (progress["state"], progress["share"], progress["arms"][0]["running"]) == ("running", 0.0, 1)
        end(store, running)
        rest = list(events)
    assert [event["event"] for event in rest][-2:] == ["progress", "end"]
    progress = json.loads(rest[-2]["data"])
    assert progress["arms"][0] == {
        "name": "dense", "done": 1, "running": 0, "queued": 0, "failed": 0, "pruned": 0, "sample_passes": 201,
        "seconds": 1.0, "best": 0.75, "share": 0.5,
    }  # fmt: skip
    assert progress["share"] == 0.25
    assert json.loads(rest[-1]["data"]) == {"state": "complete", "message": "well done"}
    assert len({event["id"] for event in [first, second, *rest]}) == len(rest) + 2


def told_after(ann: httpx.Client, last: str) -> list[str]:
    with ann.stream("GET", "/v1/studies/tiny/events", headers={"Last-Event-ID": last}) as answer:
        return [event["event"] for event in parsed(answer.iter_lines())] if answer.status_code == 200 else ["none"]


def test_a_client_that_comes_back_is_told_what_it_missed(ann, running, store):
    end(store, running)
    with ann.stream("GET", "/v1/studies/tiny/events") as answer:
        events = list(parsed(answer.iter_lines()))
    assert [event["event"] for event in events] == ["happened", "happened", "progress", "end"]
    after = {event["event"] + event["id"].partition("-")[0]: event["id"] for event in events}
    assert told_after(ann, after["happened1"]) == ["happened", "progress", "end"]
    assert told_after(ann, after["progress2"]) == ["end"]
    assert told_after(ann, after["end2"]) == ["none"]
    store.request_resume("tiny", document=store.queued_study("tiny").document, config_hash="more")
    store.request_cancel("tiny")
    ann.post("/v1/studies/tiny/cancel")
    assert told_after(ann, after["end2"])[-1] == "end"


@pytest.mark.parametrize("last", ["", "x", "-", "99999999999999-x", "-1-x", "\u0663-x", "1" * 100])
def test_an_identity_that_nobody_gave_begins_anew(ann, running, store, last):
    end(store, running)
    assert told_after(ann, last.encode())[-1] == "end"


def test_streams_of_a_token_are_limited_and_let_go(client, settings, store, study, told):
    app = application(settings, store, probes=Probes({}), max_streams=1)
    ann = client("ann", to=app)
    ann.post("/v1/studies", json=study)
    with ann.stream("GET", "/v1/studies/tiny/events") as answer:
        lines = answer.iter_lines()  # kept: a stream that nobody reads any more is closed
        assert next(lines).startswith("retry")
        told(ann.get("/v1/studies/tiny/events"), 429, "too_many_streams")
        assert "nas_blockout_streams_open 1.0" in ann.get("/metrics").text
    gone = threading.Event()
    for _ in range(100):
        if app.state.service.streams.total == 0:
            gone.set()
            break
        threading.Event().wait(0.05)
    assert gone.is_set()


def polls(queries: list[str]) -> int:
    """How often the status of a study was read."""
    return sum("queue.document" in statement and "FOR UPDATE" not in statement for statement in queries)


def test_all_who_follow_share_one_poll(ann, running, store, queries):
    watcher, before = Watcher(store, fresh_seconds=FOR_LONG), polls(queries)
    assert {watcher.status("tiny").digest for _ in range(50)} == {watcher.status("tiny").digest}
    assert polls(queries) - before == 1
    watcher.forget("tiny")
    watcher.status("tiny")
    assert polls(queries) - before == 2


def test_all_who_follow_are_woken_by_one_poll(ann, running, store, queries):
    told: list[list[str]] = [[] for _ in range(50)]
    watcher = Watcher(store, fresh_seconds=FOR_LONG)  # reads only when it is made to forget

    async def listen(feeds: Feeds, texts: list[str]) -> None:
        async for event in follow(feeds, "tiny", allowed=lambda: True):
            texts.append(event.encode().decode())

    async def everybody() -> tuple[int, int]:
        feeds, before = Feeds(watcher, pause=0.01), polls(queries)
        tasks = [asyncio.create_task(listen(feeds, texts)) for texts in told]
        while not all("event: progress" in "".join(texts) for texts in told):
            await asyncio.sleep(0.01)
        begun = polls(queries) - before
        await asyncio.to_thread(end, store, running)
        before = polls(queries)
        watcher.forget("tiny")
        await asyncio.gather(*tasks)
        return begun, polls(queries) - before

    assert asyncio.run(everybody()) == (1, 1)
    assert told == [told[0]] * 50
    assert "event: end" in told[0][-1]


def test_a_stream_is_cut_off_when_the_database_fails(ann, running, store):
    heard = []

    async def listen() -> None:
        feeds = Feeds(Watcher(store, fresh_seconds=0.0), pause=0.0)
        async for event in follow(feeds, "tiny", allowed=lambda: True):
            heard.append(event.encode().decode())
            if event.event == "progress":
                await asyncio.to_thread(rename, "queue", "elsewhere")

    def rename(table: str, name: str) -> None:
        with store._database.writing() as connection:
            connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO {name}"))

    try:
        with pytest.raises(StoreError, match="cannot be used"):
            asyncio.run(listen())
    finally:
        rename("elsewhere", "queue")
    assert heard[0].startswith("retry")


def test_a_stream_ends_when_its_token_does(ann, running, store):
    async def listen() -> list[str | None]:
        feeds = Feeds(Watcher(store), pause=0.0)
        return [event.event async for event in follow(feeds, "tiny", allowed=lambda: False, check_seconds=0.0)]

    told = asyncio.run(listen())
    assert "progress" in told
    assert "end" not in told


def test_a_stream_without_news_sends_signs_of_life(client, caching, store, study):
    ann = client("ann", to=caching(heartbeat_seconds=0.05))
    ann.post("/v1/studies", json=study)
    with ann.stream("GET", "/v1/studies/tiny/events") as answer:
        assert answer.headers["x-accel-buffering"] == "no"  # nginx would collect events before sending them
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": keep-alive"
