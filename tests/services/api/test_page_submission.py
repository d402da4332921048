"""The form for a new study: examples, errors at their lines, the cost before it is submitted, nothing twice."""

import re

import httpx
import pytest
import yaml

from nas_blockout.data import DataSettings, dimensions
from services.api.pages import editor
from services.api.requests.submitted_study import checked
from services.budget.planned_cost import planned_cost
from services.store import Store
from services.study_config.yaml_reader import bundled, read_document, yaml_value
from tests.services.api.test_api_page import proof, send


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


@pytest.fixture
def visitor(client, store) -> httpx.Client:
    found = client(None)
    found.post("/login", data={"token": store.create_token("", owner="ann", scope="write")[1]})
    return found


def words(answer: httpx.Response) -> str:
    """The text of the outcome of a check, without markup."""
    _, _, outcome = answer.text.partition('id="outcome"')
    return " ".join(re.sub("<[^>]+>", " ", outcome.partition("</form>")[0]).split())


def test_every_example_that_is_offered_can_be_submitted(settings):
    names = [example.name for example in editor.examples(settings)]
    assert "quickstart" in names
    assert "compress" not in names  # whose network is a file
    for name in names:
        checked(read_document(bundled()[name]), settings)


def test_the_empty_example_is_a_study_also_with_its_comments_taken_away(settings):
    text = editor.example_text(editor.EMPTY)
    checked(yaml_value(text), settings)
    every = re.sub(r"^( *)# ([a-z]+:.*|  .*)$", r"\1\2", text, flags=re.MULTILINE)
    assert "blockout" in checked(yaml_value(every), settings).arms


def test_an_example_is_put_into_the_form(visitor):
    text = visitor.get("/new?example=quickstart").text
    assert "name: quickstart" in text
    assert '<option value="quickstart" selected>' in text
    assert visitor.get("/new?example=../../etc/passwd").status_code == 404
    assert '<option value="compress"' not in text


def test_errors_stand_at_their_lines(visitor, store):
    answer = send(visitor, "/new", yaml="schema_version: 2\nname: x\nbudgte: 3\narms: {dense: {}}\n")
    assert answer.status_code == 422
    assert re.search(r'<li class="wrong">3<span class="lens">budgte: no such key', answer.text)
    assert 'data-line="3">Line 3</a>' in answer.text
    assert "budgte: 3" in answer.text
    assert store.queue() == ()


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb: [", 3), ("a: 1\n\na: 2", 3), ("a: 1\nb: &x 1\nc: *x", None), ("a: \x00", None)]
)
def test_yaml_that_cannot_be_read_says_where(visitor, text, line):
    answer = send(visitor, "/new", yaml=text)
    assert answer.status_code == 422
    found = re.search(r'data-line="(\d+)"', answer.text)
    assert (int(found[1]) if found else None) == line


def test_a_check_by_the_script_answers_like_a_page_and_says_it_aloud(visitor):
    fields = {"proof": proof(visitor), "yaml": "budgte: 3"}
    answer = visitor.post("/new", data=fields, headers={"HX-Request": "true"})
    assert answer.status_code == 200  # htmx leaves a page as it is otherwise
    assert re.search(r'<div hx-swap-oob="innerHTML:#announcement">[0-9] errors: ', answer.text)


def test_a_check_says_what_the_study_costs_and_queues_nothing(visitor, study, store):
    answer = send(visitor, "/new", yaml=yaml.safe_dump(study))
    assert answer.status_code == 200
    # 402 passes an arm pay for three trainings of 2 epochs x (50 + 17 images for statistics): one, and two retrainings.
    assert "tiny is valid" in words(answer)
    assert "Trainings 6 Sample passes 804 Training time not known" in words(answer)
    assert "dense 1 2 134 402" in words(answer)
    assert store.queue() == ()


def test_the_time_is_reckoned_from_one_s_own_studies_and_from_no_others(visitor, client, study, store):
    for owner, name, seconds in (("bob", "of-bob", 1.0), ("ann", "of-ann", 13.4)):
        client(owner).post("/v1/studies", json={**study, "name": name})
        row = store.queued_study(name)
        store.create_study(name, config=row.document, config_hash=row.config_hash, arms=["dense", "dropout"])
        for arm in ("dense", "dropout"):
            trial = store.add_trial(name, arm=arm, phase="search", number=0, seed=0, experiment={}, planned=134).id
            store.start_attempt(trial)
            store.record_epochs(trial, [{"epoch": 0, "sample_passes": 134, "seconds": seconds}])
            store.finish_trial(trial, "complete", score=0.5)
        store.acquire_lease("w", seconds=600, study=name)
        store.finish_queued(name, "w", "complete")
    other = {**study, "name": "new", "question": "Another?", "budget": {"sample_passes": 536}}
    said = words(send(visitor, "/new", yaml=yaml.safe_dump(other)))
    # Four trainings of 13.4 s in each of two arms, two at a time.
    assert "Training time 2 min Wall-clock, with 2 at once 54 s" in said
    assert "reckoned from of-ann, with" in said
    assert "of-bob" not in said


def test_a_study_of_seconds_is_bounded_by_them(study, settings):
    found = planned_cost(checked({**study, "budget": {"seconds": 60}}, settings), images=50)
    assert (found.trainings, found.sample_passes, found.training_seconds({})) == (None, None, 120.0)


def test_the_dearer_limit_does_not_count_and_data_of_unknown_size_leave_trainings(study, settings):
    resolved = checked({**study, "budget": {"sample_passes": 100_000, "trainings": 5}}, settings)
    found = planned_cost(resolved, images=50)
    assert [(arm.searches, arm.retrainings, arm.sample_passes) for arm in found.arms] == [(3, 2, 670)] * 2
    unknown = planned_cost(resolved, images=None)
    assert (unknown.trainings, unknown.sample_passes) == (10, 200_000)


def test_the_number_of_images_is_known_without_reading_them():
    assert dimensions(DataSettings("digits", train_samples=50)).train_images == 50


def finish(store: Store, name: str) -> None:
    store.acquire_lease("w", seconds=600, study=name)
    store.finish_queued(name, "w", "complete")


def test_a_finished_study_is_not_queued_again_by_choosing_it(visitor, store):
    send(visitor, "/studies", bundled="quickstart")
    finish(store, "quickstart")
    answer = send(visitor, "/studies", bundled="quickstart")
    assert answer.status_code == 409
    assert '<a href="/studies/quickstart">quickstart</a> is complete' in answer.text
    assert "quickstart-2" in answer.text
    assert "name: quickstart" in answer.text  # what is sent again with another name
    assert (len(store.queue()), store.queued_study("quickstart").state) == (1, "complete")


def test_the_same_under_another_name_needs_to_be_confirmed(visitor, study, store):
    text = yaml.safe_dump(study)
    send(visitor, "/studies", yaml=text)
    finish(store, "tiny")
    answer = send(visitor, "/studies", yaml=text, name="tiny-2")
    assert answer.status_code == 409
    assert "run under another name" in answer.text
    assert 'value="tiny-2"' in answer.text
    assert len(store.queue()) == 1
    assert send(visitor, "/studies", yaml=text, name="tiny-2", again="1").status_code == 303
    other = yaml.safe_dump({**study, "name": "tiny-3", "seed": 7})
    assert send(visitor, "/studies", yaml=other).status_code == 303  # which is another study


def test_a_failed_study_is_resumed_on_its_page_and_not_from_the_form(visitor, study, store):
    text = yaml.safe_dump(study)
    send(visitor, "/studies", yaml=text)
    store.request_cancel("tiny")
    answer = send(visitor, "/studies", yaml=text, again="1")
    assert answer.status_code == 409
    assert "Resume it on its page" in answer.text
    assert store.queued_study("tiny").state == "cancelled"


def test_of_another_owner_s_study_the_form_says_nothing(visitor, client, study, store):
    client("bob").post("/v1/studies", json={**study, "name": "of-bob"})
    finish(store, "of-bob")
    answer = send(visitor, "/new", yaml=yaml.safe_dump(study))
    assert "of-bob" not in answer.text
    assert "tiny is valid" in words(answer)


def test_who_may_only_read_checks_and_submits_nothing(client, study, store):
    reader = client(None)
    reader.post("/login", data={"token": store.create_token("", owner="ann", scope="read")[1]})
    assert "<textarea" not in reader.get("/new").text
    for path in ("/new", "/studies"):
        assert send(reader, path, yaml=yaml.safe_dump(study)).status_code == 403
    assert store.queue() == ()


@pytest.mark.parametrize("path", ["/new", "/studies", "/studies/tiny/delete"])
def test_forms_need_the_proof_of_their_session(visitor, study, store, path, told):
    told(visitor.post(path, data={"yaml": yaml.safe_dump(study)}), 403, "other_site")
    headers = {"Origin": "http://evil.example"}
    told(visitor.post(path, data={"proof": proof(visitor)}, headers=headers), 403, "other_site")


def test_cancelling_and_deleting_ask_first(visitor, client, study, store):
    send(visitor, "/studies", yaml=yaml.safe_dump(study))
    assert 'href="/studies/tiny/cancel"' in visitor.get("/studies/tiny").text
    asked = visitor.get("/studies/tiny/cancel").text
    assert "Cancel tiny?" in asked
    assert store.queued_study("tiny").state == "queued"
    assert visitor.get("/studies/tiny/delete").headers["location"] == "/studies/tiny"  # it has not ended
    assert visitor.get("/studies/tiny/anything").status_code == 404
    send(visitor, "/studies/tiny/cancel")
    assert "For 7 days it can be restored" in visitor.get("/studies/tiny/delete").text
    other = client(None)
    other.post("/login", data={"token": store.create_token("", owner="bob", scope="write")[1]})
    assert other.get("/studies/tiny/delete").status_code == 404
