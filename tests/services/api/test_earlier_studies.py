"""A submitted study begins with trials of a study that its owner may see, and of no other."""


def test_the_study_of_another_owner_is_answered_like_one_that_does_not_exist(client, study, store, told):
    ann, bob = client("ann"), client("bob")
    assert ann.post("/v1/studies", json={**study, "name": "secret-study"}).status_code == 201
    arms = {"a": {"space": ["training"], "warm_start": {"study": "secret-study"}}}
    later = {**study, "name": "later", "arms": arms}
    for name in ("secret-study", "secret-stduy", "nothing-like-it"):
        arms["a"]["warm_start"]["study"] = name
        found = told(bob.post("/v1/studies", json=later), 422, "invalid_study")
        assert [each["key"] for each in found["errors"]] == ["arms.a.warm_start.study"]
        assert f"there is no study {name!r} here; there is no study yet" in found["message"]
    arms["a"]["warm_start"]["study"] = "secret-study"
    mine = told(ann.post("/v1/studies", json=later), 422, "invalid_study")
    assert "no search trial of study 'secret-study' is complete" in mine["message"]
    arms["a"]["warm_start"]["study"] = "secret-stduy"
    near = told(ann.post("/v1/studies", json=later), 422, "invalid_study")
    assert "did you mean 'secret-study'?" in str(near)
    assert [row.study for row in store.queue()] == ["secret-study"]


def test_a_study_is_queued_with_the_trials_that_were_the_best_when_it_was_submitted(client, study, store, pretend):
    from services.study_config.resolved_study import parse_resolved

    ann = client("ann")
    arms = {"a": {"space": ["training"]}}
    assert ann.post("/v1/studies", json={**study, "name": "earlier", "arms": arms}).status_code == 201
    document = parse_resolved(store.queued_study("earlier").document)
    store.create_study("earlier", config=document.to_json(), config_hash=document.hash, arms=["a"])
    pretend(store, document, max_concurrent_trials=1)
    later = {**study, "name": "later", "arms": {"a": {**arms["a"], "warm_start": {"study": "earlier", "best": 1}}}}
    assert ann.post("/v1/studies", json=later).status_code == 201
    (recorded,) = store.queued_study("later").document["arms"]["a"]["warm_start"]["trials"]
    best = max(trial.score for trial in store.trials("earlier", phase="search", state="complete"))
    assert recorded["score"] == best
    assert ann.post("/v1/studies", json=later).status_code == 200
