"""Studies through the API: given once, seen by their owner alone, listed in pages, cancelled, resumed, extended."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from services.study_config.resolution import resolve_document

NEVER = 600.0


def give(client, study, **changes):
    answer = client.post("/v1/studies", json={**study, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_study_is_queued_as_yaml_or_json_and_nothing_is_trained(ann, study, store):
    answer = ann.post(
        "/v1/studies", content=yaml.safe_dump(study, allow_unicode=True), headers={"Content-Type": "application/yaml"}
    )
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/v1/studies/tiny"
    shown = answer.json()
    assert (shown["name"], shown["state"], shown["owner"], shown["attempt"]) == ("tiny", "queued", "ann", 0)
    row = store.queued_study("tiny")
    assert row.config_hash == shown["hash"]
    assert row.document["question"] == "Größer? 漢字"
    assert row.source == study
    assert len(store.studies()) == 0
    again = ann.post("/v1/studies", json=study)
    assert again.status_code == 200
    assert again.json() == shown


def test_the_same_request_sent_twice_at_once_is_one_study(ann, study, store):
    def post(_: int) -> int:
        return ann.post("/v1/studies", json=study, headers={"Idempotency-Key": "once"}).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(post, range(8)))
    assert statuses == [200] * 7 + [201]
    assert len(store.queue()) == 1


def test_a_key_is_for_one_study(ann, study, told):
    key = {"Idempotency-Key": "k-1"}
    ann.post("/v1/studies", json=study, headers=key)
    answer = ann.post("/v1/studies", json={**study, "name": "other"}, headers=key)
    assert "use a new key for each request" in told(answer, 409, "conflict")["remedy"]
    for bad in ("", "x" * 201, "ä"):
        answer = ann.post("/v1/studies", json=study, headers={"Idempotency-Key": bad.encode()})
        assert told(answer, 422, "invalid_request")["key"] == "Idempotency-Key"


def test_other_contents_under_a_name_are_refused(ann, study, told):
    give(ann, study)
    found = told(ann.post("/v1/studies", json={**study, "seed": 5}), 409, "conflict")
    assert found["remedy"] == "choose another name, or extend the study"


@pytest.mark.parametrize(
    ("changes", "key", "value", "says"),
    [
        ({"budgte": 3}, "budgte", None, "no such key; did you mean 'budget'?"),
        ({"schema_version": None}, "schema_version", "None", "must be 2"),
        ({"training": {"epochs": 0}}, "training.epochs", "0", "greater than or equal to 1"),
        (
            {"arms": {"dense": {"method": {"name": "dropuot"}}}},
            "arms.dense.method.name",
            "'dropuot'",
            "did you mean 'dropout'?",
        ),
        ({"name": "Ünïcode"}, "name", "'Ünïcode'", "should match pattern"),
        ({"name": "../../etc/passwd"}, "name", "'../../etc/passwd'", "should match pattern"),
        ({"data": {"name": "imagefolder", "folder": "/etc"}}, "data.folder", "/etc", "must be omitted"),
        ({"data": {"name": "glyphs", "folder": "/etc"}}, "data.folder", "/etc", "must be omitted"),
    ],
)
def test_a_study_that_breaks_a_rule_is_refused_with_key_value_and_rule(
    ann, study, store, told, changes, key, value, says
):
    found = told(ann.post("/v1/studies", json={**study, **changes}), 422, "invalid_study")
    assert says in found["message"]
    assert (found["key"], found["value"]) == (key, value)
    assert store.queue() == ()


def test_all_broken_rules_are_listed_beside_the_first(ann, study, store, told):
    broken = {**study, "seed": -1, "workers": {"at_once": 2}, "arms": {"dense": {"method": {"name": "dropuot"}}}}
    found = told(ann.post("/v1/studies", json=broken), 422, "invalid_study")
    assert [each["key"] for each in found["errors"]] == ["seed", "workers.at_once", "arms.dense.method.name"]
    assert found["errors"][1]["remedy"] == "version 2 calls it 'max_concurrent_trials'"
    assert {key: found[key] for key in found["errors"][0]} == found["errors"][0]
    assert store.queue() == ()


def test_errors_between_keys_and_of_networks_are_listed_with_those_of_keys(ann, study, store, told):
    arms = {
        "key": {"training": {"momentum": 2}},
        "between": {"training": {"warmup_epochs": 7}},
        "network": {"method": {"name": "blockout", "clusters": 9}},
        "inherited": {"extends": "key"},
    }
    data = {**study["data"], "folder": "/etc"}
    broken = {**study, "arms": arms, "data": data, "budget": {"sample_passes": 401, "tolerance": -1}}
    found = told(ann.post("/v1/studies", json=broken), 422, "invalid_study")
    assert sorted(each["key"] for each in found["errors"]) == [
        "arms.between.training.warmup_epochs",
        "arms.key.training.momentum",
        "arms.network.method.clusters",
        "budget.sample_passes",
        "budget.tolerance",
        "data.folder",
    ]
    assert store.queue() == ()


def test_errors_of_a_study_sent_as_yaml_have_lines_and_are_in_their_order(ann, study, told):
    text = yaml.safe_dump({**study, "arms": {"dense": {"training": {"momentum": 2, "warmup_epochs": 9}}}, "seed": -1})
    lines = {line.partition(":")[0].strip(): number for number, line in enumerate(text.splitlines(), 1)}
    found = told(
        ann.post("/v1/studies", content=text, headers={"Content-Type": "application/yaml"}), 422, "invalid_study"
    )
    assert [(each["key"], each["line"]) for each in found["errors"]] == [
        ("arms.dense.training.momentum", lines["momentum"]),
        ("arms.dense.training.warmup_epochs", lines["warmup_epochs"]),
        ("seed", lines["seed"]),
    ]
    assert (found["key"], found["line"]) == ("arms.dense.training.momentum", lines["momentum"])


def test_what_follows_once_the_errors_are_fixed_is_named(ann, study, told):
    broken = {**study, "arms": {"dense": {"method": {"name": "dropuot"}}, "other": {}}}
    found = told(ann.post("/v1/studies", json=broken), 422, "invalid_study")
    assert found["unchecked"] == "further checks follow once these errors are fixed: of the arm dense"


def test_networks_that_must_be_traced_are_left_to_the_job(ann, study, told):
    """Tracing one takes seconds; what its dense network shows is checked here."""
    arms = {
        f"deep-{number}": {"backbone": {"name": "inception", "hidden": [number]}, "pruning": {}} for number in (8, 9)
    }
    assert ann.post("/v1/studies", json={**study, "budget": {"trainings": 3}, "arms": arms}).status_code == 201
    arms["deep-8"]["backbone"]["hidden"] = [10**9]
    found = told(
        ann.post("/v1/studies", json={**study, "budget": {"trainings": 3}, "arms": arms}), 422, "invalid_study"
    )
    assert found["key"] == "arms.deep-8.backbone"


def test_a_resolved_study_is_refused_here(ann, study, told):
    resolved = resolve_document(study, source="x").to_json()
    told(ann.post("/v1/studies", json=resolved), 422, "invalid_study")


def test_a_relative_folder_is_refused_with_a_remedy(ann, study, told):
    sent = {**study, "data": {"name": "imagefolder", "folder": "pictures"}}
    found = told(ann.post("/v1/studies", json=sent), 422, "invalid_study")
    assert (found["key"], found["value"]) == ("data.folder", "pictures")
    assert found["remedy"] == "omit it, or run the study with `nas-blockout submit`"
    assert len(found["errors"]) == 1  # and nothing about a whole path, which would be refused as well


def test_a_near_match_is_the_remedy(ann, study, told):
    found = told(ann.post("/v1/studies", json={**study, "budgte": 3}), 422, "invalid_study")
    assert found["remedy"] == "did you mean 'budget'?"


def test_owners_see_and_change_only_their_own(client, study, told):
    ann, bob = client("ann"), client("bob")
    give(ann, study)
    assert bob.get("/v1/studies").json() == {"studies": [], "next": None}
    assert bob.get("/v1/studies?owner=ann").json()["studies"] == []
    for method, path in (
        ("GET", ""), ("GET", "/events"), ("GET", "/report"), ("GET", "/comparison"), ("GET", "/trials"),
        ("GET", "/architectures"), ("GET", "/models"), ("GET", "/models/dense/model.onnx"), ("POST", "/cancel"),
        ("POST", "/resume"),
    ):  # fmt: skip
        theirs, nobodys = (bob.request(method, f"/v1/studies/{name}{path}") for name in ("tiny", "no-such"))
        told(theirs, 404, "not_found")
        assert theirs.json() == nobodys.json()
    told(bob.post("/v1/studies/tiny/extend", json={"assignments": ["seed=1"]}), 404, "not_found")
    found = told(bob.post("/v1/studies", json=study), 409, "conflict")
    assert "ann" not in found["message"]
    assert ann.get("/v1/studies/tiny").json()["state"] == "queued"


def test_a_token_that_may_only_read_changes_nothing(client, study, told):
    give(client("ann"), study)
    reader = client("ann", "read")
    assert reader.get("/v1/studies/tiny").status_code == 200
    for path, body in (
        ("", study),
        ("/tiny/cancel", None),
        ("/tiny/resume", None),
        ("/tiny/extend", {"assignments": []}),
    ):
        told(reader.post(f"/v1/studies{path}", json=body), 403, "read_only")


def test_lists_have_pages_and_filters(ann, study):
    for number in range(5):
        give(ann, study, name=f"study-{number}")
    ann.post("/v1/studies/study-3/cancel")
    names, cursor = [], ""
    while cursor is not None:
        found = ann.get("/v1/studies", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(found["studies"]) <= 2
        names += [each["name"] for each in found["studies"]]
        cursor = found["next"]
    assert names == [f"study-{number}" for number in (4, 3, 2, 1, 0)]

    def listed(query: str) -> list[str]:
        return [each["name"] for each in ann.get(f"/v1/studies?{query}").json()["studies"]]

    assert listed("state=cancelled") == ["study-3"]
    assert len(listed("state=cancelled&state=queued")) == 5
    assert listed("prefix=study-1&owner=ann") == ["study-1"]


TOO_HIGH = "cursor=YmVmb3JlIDk5OTk5OTk5OTk5OTk5OTk5OTk5OTk="
BAD = ["limit=0", "limit=101", "cursor=x", TOO_HIGH, "state=odd", "prefix=%25", "prefix=%00", "owner=" + "x" * 65]


@pytest.mark.parametrize("query", BAD)
def test_a_bad_query_is_refused(ann, told, query):
    assert told(ann.get(f"/v1/studies?{query}"), 422, "invalid_request")["key"].split(".")[0] in query


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "%00", "%ff", "a" * 5000, "тест", "%F0%9F%98%80", "a b", "tiny%0a"])
def test_a_name_that_no_study_has_is_not_there(ann, study, told, name):
    give(ann, study)
    for path in ("", "/report", "/events", "/models/x/y"):
        told(ann.get(f"/v1/studies/{name}{path}"), 404, "not_found")


def test_a_study_is_shown_with_its_arms_and_settings(ann, study, store):
    give(ann, study)
    shown = ann.get("/v1/studies/tiny").json()
    assert [arm["name"] for arm in shown["arms"]] == ["dense", "dropout"]
    assert (shown["share"], shown["question"]) == (0.0, "Größer? 漢字")
    assert shown["study"] == store.queued_study("tiny").document


def test_a_study_is_cancelled_and_resumed(ann, study, store, told):
    give(ann, study)
    assert ann.post("/v1/studies/tiny/cancel").json()["state"] == "cancelled"
    assert ann.post("/v1/studies/tiny/cancel").json()["state"] == "cancelled"
    assert ann.post("/v1/studies/tiny/resume").json()["state"] == "queued"
    store.acquire_lease("one", seconds=NEVER)
    assert ann.post("/v1/studies/tiny/cancel").json()["state"] == "cancelling"
    found = told(ann.post("/v1/studies/tiny/resume"), 409, "wrong_state")
    assert found["remedy"] is None or "wait" in found["message"]
    store.finish_queued("tiny", "one", "complete")
    told(ann.post("/v1/studies/tiny/cancel"), 409, "wrong_state")
    told(ann.post("/v1/studies/tiny/resume"), 409, "wrong_state")


def test_a_study_that_has_ended_is_extended(ann, study, store, told):
    study = {**study, "budget": {"sample_passes": 536}}  # enough for the third retraining
    before = give(ann, study)
    changes = {"assignments": ["retrain.seeds=[0, 1, 2]", "arms.wide={extends: dense, description: again}"]}
    told(ann.post("/v1/studies/tiny/extend", json=changes), 409, "wrong_state")
    store.acquire_lease("one", seconds=NEVER)
    store.finish_queued("tiny", "one", "complete")
    after = ann.post("/v1/studies/tiny/extend", json=changes).json()
    assert after["state"] == "queued"
    assert after["hash"] != before["hash"]
    document = store.queued_study("tiny").document
    assert document["retrain"]["seeds"] == [0, 1, 2]
    assert list(document["arms"]) == ["dense", "dropout", "wide"]
    assert ann.post("/v1/studies", json=study).json()["hash"] == after["hash"]


@pytest.mark.parametrize(
    ("assignments", "status", "code", "says"),
    [
        (["seed=3"], 409, "conflict", "another seed"),
        (["name=other"], 409, "conflict", "must not change"),
        (["budget.sample_passes=1"], 409, "conflict", "another budget.sample_passes"),
        (["nonsense"], 422, "invalid_study", "takes key=value"),
        (["budget=&a [*a]"], 422, "invalid_study", "aliases"),
        (['question="\\0"'], 422, "malformed_body", "NUL"),
        (["budget.sample_passes=" + "9" * 5000], 422, "invalid_study", "not valid YAML"),
        (["data={name: imagefolder, folder: /etc}"], 422, "invalid_study", "must be omitted"),
        ([], 422, "invalid_request", "assignments"),
        (["x"] * 101, 422, "invalid_request", "assignments"),
        ("seed=3", 422, "invalid_request", "assignments"),
    ],
)
def test_what_does_not_only_add_is_refused_and_changes_nothing(
    ann, study, store, told, assignments, status, code, says
):
    give(ann, study)
    store.acquire_lease("one", seconds=NEVER)
    store.finish_queued("tiny", "one", "complete")
    before = store.queued_study("tiny")
    found = told(ann.post("/v1/studies/tiny/extend", json={"assignments": assignments}), status, code)
    assert says in found["message"]
    assert store.queued_study("tiny") == before


def test_an_owner_has_so_many_studies_open(client, limited, study, told):
    ann = client("ann", to=limited(api_open_studies=1))
    give(ann, study)
    answer = ann.post("/v1/studies", json={**study, "name": "second"})
    assert "the limit is 1" in told(answer, 429, "too_many_studies")["message"]
    assert int(answer.headers["Retry-After"]) > 0
    ann.post("/v1/studies/tiny/cancel")
    give(ann, study, name="second")
    told(ann.post("/v1/studies/tiny/resume"), 429, "too_many_studies")
