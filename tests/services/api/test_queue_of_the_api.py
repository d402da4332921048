"""Where one's studies stand in line: numbers of others, and no names."""

import httpx
import pytest

from services.store import Store, Waiting
from tests.services.api.test_api_page import send


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


@pytest.fixture
def line(client, study, store) -> None:
    """Four studies that wait, of two owners, and one that runs."""
    for owner, name in (("bob", "first"), ("ann", "second"), ("bob", "third"), ("ann", "fourth"), ("bob", "runs")):
        client(owner).post("/v1/studies", json={**study, "name": name})
    store.set_waiting(
        {name: Waiting(place, "waits") for place, name in enumerate(("first", "second", "third", "fourth"), 1)}
    )
    store.acquire_lease("worker", seconds=600, study="runs")


def test_one_s_own_studies_have_what_is_ahead_of_them_in_numbers(client, line):
    answer = client("ann", "read").get("/v1/queue")
    found = answer.json()
    assert (found["running"], found["waiting"]) == (1, 4)
    assert [(each["name"], each["position"], each["ahead"], each["own_ahead"]) for each in found["studies"]] == [
        ("second", 2, 1, 0), ("fourth", 4, 3, 1),
    ]  # fmt: skip
    for hidden in ("bob", "first", "third", "runs"):
        assert hidden not in answer.text


def test_what_has_gone_ahead_is_not_counted(client, line, store):
    store.request_cancel("first")
    assert client("ann").get("/v1/queue").json()["studies"][0]["ahead"] == 0


def test_an_administrator_sees_all_that_wait(client, line):
    names = [each["name"] for each in client("root", "admin").get("/v1/queue").json()["studies"]]
    assert names == ["first", "second", "third", "fourth"]


def test_a_study_without_a_place_comes_last_and_says_so(client, line, study, store):
    client("ann").post("/v1/studies", json={**study, "name": "new"})
    last = client("ann").get("/v1/queue").json()["studies"][-1]
    assert (last["name"], last["position"], last["ahead"], last["own_ahead"]) == ("new", None, None, None)


def test_the_queue_needs_a_token(client, told):
    told(client(None).get("/v1/queue"), 401, "unauthorized")
    assert client(None).get("/queue").headers["location"] == "/login"


def test_the_page_says_it_in_words_and_refreshes_when_it_changes(client, line, store):
    visitor: httpx.Client = client(None)
    visitor.post("/login", data={"token": store.create_token("", owner="ann", scope="write")[1]})
    text = visitor.get("/queue").text
    assert "1 ahead: 1 of others" in text
    assert "3 ahead: 1 of the same owner and 2 of others" in text
    assert "first" not in text
    assert "3 ahead: 1 of the same owner and 2 of others" in visitor.get("/studies/fourth").text
    query = text.partition('hx-get="')[2].partition('"')[0].replace("&amp;", "&")
    assert visitor.get(query).status_code == 204
    send(visitor, "/studies/second/cancel")
    answer = visitor.get(query)
    assert answer.status_code == 200
    assert ">fourth has 2 ahead</div>" in answer.text
