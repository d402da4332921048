"""Trials, attempts and epochs, on every database: queued once, charged for all they cost, ended once."""

from dataclasses import replace
from datetime import UTC
from itertools import product

import pytest
import sqlalchemy as sa

from services.store import NotFound, StateError, StoreError, StudyConflict, tables
from tests.services.sql_counts import counted

ENDS = ["complete", "failed", "pruned"]
TREE = {"schema_version": 1, "clusters": 1, "layers": []}


def record(epoch: int, **changes: object) -> dict[str, object]:
    return {
        "epoch": epoch,
        "sample_passes": 10 * (epoch + 1),
        "seconds": 0.5 * (epoch + 1),
        "train_loss": 1.5,
    } | changes


def finish(store, trial, state):
    store.finish_trial(trial, state, score=0.5, reason="because")


def test_a_trial_is_kept_as_it_was_given(store, study):
    given = {
        "arm": "blockout",
        "phase": "retrain",
        "number": 3,
        "seed": 2**40,
        "planned": 2**40,
        "suggest_seconds": 0.25,
    }
    experiment = {"rate": 0.1, "widths": [1, 2], "none": None, "text": "größer"}
    params = {"values": {"rate": 0.1}, "distributions": {}}
    row = store.add_trial(study, **given, experiment=experiment, params=params, architecture_hash=None)
    assert {name: getattr(row, name) for name in given} == given
    assert (row.study, row.state, row.experiment, row.params) == (study, "queued", experiment, params)
    assert (row.sample_passes, row.seconds, row.score, row.result, row.reason) == (0, 0.0, None, None, None)
    assert (row.started_at, row.finished_at, row.created_at.tzinfo) == (None, None, UTC)
    assert store.trial(row.id) == row
    assert store.trials(study) == (row,)


def test_a_trial_is_queued_once(store, study, queue):
    first = queue(number=0)
    finish_later = queue(number=1)
    store.start_attempt(first.id)
    assert queue(number=0) == store.trial(first.id)
    assert [row.id for row in store.trials(study)] == [first.id, finish_later.id]


@pytest.mark.parametrize("changes", [{"seed": 8}, {"experiment": {"width": 9}}])
def test_another_trial_under_the_same_number_is_refused(store, study, queue, changes):
    before = queue(number=0)
    with pytest.raises(
        StudyConflict, match=r"search trial 0 of arm 'random' in study 'example' .* another experiment or"
    ):
        queue(number=0, **changes)
    assert store.trials(study) == (before,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "serch"}, "phase must be one of search, retrain, got 'serch'"),
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\*\*63 - 1\], got -1"),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"number": 0.5}, "number must be a whole number"),
        ({"planned": True}, "planned must be a whole number"),
        ({"suggest_seconds": float("nan")}, "suggest_seconds must be a finite number of 0 or more, got nan"),
        ({"experiment": {"rate": float("inf")}}, "experiment must contain only finite numbers, got rate=inf"),
        ({"params": {"values": [float("nan")]}}, "params must contain only finite numbers, got values.0=nan"),
    ],
)
def test_a_value_out_of_its_range_is_refused(store, study, queue, changes, message):
    with pytest.raises(ValueError, match=message):
        queue(
            **({"number": 0} | changes) if changes.get("phase") != "serch" else {"number": 0, "arm": "random"} | changes
        )
    assert store.trials(study) == ()


def test_an_arm_that_is_not_there_is_refused_with_those_that_are(store, study):
    with pytest.raises(NotFound, match="no arm 'rnd' in study 'example'; there are random, blockout"):
        store.add_trial(study, arm="rnd", phase="search", number=0, seed=0, planned=0, experiment={})


def test_a_trial_that_is_not_there_is_refused(store):
    for call in (store.trial, store.start_attempt, lambda trial: finish(store, trial, "failed")):
        with pytest.raises(NotFound, match="no trial 41 in the store"):
            call(41)
    with pytest.raises(NotFound, match="no trial 41 in the store"):
        store.record_epochs(41, [record(0)])
    assert (store.attempts(41), store.epochs(41)) == ((), ())


def test_a_trial_may_start_as_it_is_added_and_does_so_once(store, study, queue):
    row = queue(starts=True, number=0)
    assert (row.state, [each.number for each in store.attempts(row.id)]) == ("running", [0])
    assert row.started_at == row.created_at
    assert queue(starts=True, number=0) == row
    assert len(store.attempts(row.id)) == 1
    ended = store.finish_trial(row.id, "complete", score=0.5)
    assert ended == store.trial(row.id)
    assert queue(starts=True, number=0) == ended


def test_a_trial_that_is_added_is_not_read_back(store, study, queue):
    with counted() as counts:
        row = queue(number=0, params={"values": {"rate": 0.1}})
    assert counts.statements <= 3  # BEGIN where SQLite says so, the arms, the insertion
    assert store.trial(row.id) == row


def test_of_a_trial_that_ends_its_driver_need_not_read_again_what_it_knows(store, queue):
    row = queue(starts=True, params={"values": {"rate": 0.1}})
    store.record_epochs(row.id, [{"epoch": 0, "sample_passes": 50, "seconds": 0.5, "validation_accuracy": 0.5}])
    known = replace(row, experiment={"known": 1}, params={"known": 2})
    ended = store.finish_trial(row.id, "complete", score=0.5, result={"macs": 3, "loss": float("nan")}, known=known)
    stored = store.trial(row.id)
    assert (ended.experiment, ended.params) == ({"known": 1}, {"known": 2})
    assert replace(ended, experiment=row.experiment, params=row.params) == stored
    again = store.finish_trial(row.id, "complete", score=0.1, result={"macs": 9}, known=known)
    assert again == stored, "a repeated end changes nothing, and is read as it is"


def test_trials_can_be_read_without_their_experiments_or_any_document(store, study, queue):
    rows = [queue(number=number, params={"values": {"rate": 0.1}}) for number in range(4)]
    store.finish_trial(rows[1].id, "failed", reason="broken")
    bare = [replace(store.trial(row.id), experiment={}) for row in rows]
    assert list(store.each_trial(study, experiments=False)) == bare
    brief = [replace(trial, params={}, result=None) for trial in bare]
    assert list(store.brief_trials(study)) == brief
    assert list(store.brief_trials(study, after=rows[1].id, among={rows[0].id})) == [brief[0], *brief[2:]]


def test_trials_are_found_by_arm_phase_and_state(store, study, queue):
    rows = [queue(arm=arm, phase=phase) for arm, phase in product(["random", "blockout"], ["search", "retrain"])]
    store.start_attempt(rows[3].id)
    ids = [row.id for row in rows]
    assert [row.id for row in store.trials(study)] == ids
    assert [row.id for row in store.trials(study, arm="blockout")] == ids[2:]
    assert [row.id for row in store.trials(study, phase="search")] == ids[::2]
    assert [row.id for row in store.trials(study, state="running")] == ids[3:]
    assert store.trials(study, arm="random", state="running") == ()
    assert [row.id for row in store.trials(study, after=ids[0], limit=2)] == ids[1:3]
    assert [row.id for row in store.trials(study, arm="blockout", limit=1)] == ids[2:3]
    assert [row.id for row in store.trials(study, after=ids[3])] == []
    assert [row.id for row in store.each_trial(study)] == ids
    with pytest.raises(ValueError, match=r"state of a trial must be one of .* got 'done'"):
        store.trials(study, state="done")


def architectures(store):
    """What the table of architectures holds, by hash."""
    with store._database.reading() as connection:
        rows = connection.execute(sa.select(tables.architectures.c.hash, tables.architectures.c.document))
        return {row.hash: row.document for row in rows}


def test_a_proposed_architecture_is_kept_under_its_hash(store, queue):
    first = queue(architecture=TREE, architecture_hash="abc")
    second = queue(architecture={"other": 1}, architecture_hash="abc", replicate_of=first.number)
    assert (second.architecture_hash, second.replicate_of) == ("abc", 0)
    assert queue(architecture_hash="abc").architecture_hash == "abc"
    assert architectures(store) == {"abc": TREE}


def test_a_hash_without_its_architecture_is_refused(store, study, queue):
    with pytest.raises(StoreError, match="cannot be used"):
        queue(architecture_hash="unknown")
    assert store.trials(study) == ()


def test_an_attempt_makes_a_trial_run_and_loses_the_one_before(store, queue):
    trial = queue().id
    first = store.start_attempt(trial, worker="host:1")
    started = store.trial(trial).started_at
    second = store.start_attempt(trial, worker="host:2")
    lost, current = store.attempts(trial)
    assert (first.number, second.number, second) == (0, 1, current)
    assert (lost.state, lost.worker, current.state, current.worker) == ("lost", "host:1", "running", "host:2")
    assert lost.finished_at >= lost.started_at == first.started_at
    assert store.trial(trial).state == "running"
    assert store.trial(trial).started_at == started


def test_a_worker_is_noted_once_it_is_known(store, queue):
    trial = queue().id
    store.start_attempt(trial)
    for worker in ("host:1", "host:2"):
        store.record_epochs(trial, [record(0)], worker=worker)
    assert [attempt.worker for attempt in store.attempts(trial)] == ["host:1"]


def test_epochs_are_kept_once_and_in_order(store, running):
    store.record_epochs(running, [record(1), record(0, stage="learn", telemetry={"blockout/entropy": [0.1, 0.2]})])
    store.record_epochs(running, [record(0, train_loss=9.0), record(1), record(2)])
    store.record_epochs(running, [])
    found = store.epochs(running)
    assert [(row.epoch, row.stage, row.sample_passes, row.seconds) for row in found] == [
        (0, "learn", 10, 0.5),
        (1, "train", 20, 1.0),
        (2, "train", 30, 1.5),
    ]
    assert found[0].metrics == {"train_loss": 1.5, "telemetry": {"blockout/entropy": [0.1, 0.2]}}
    assert store.epochs(running, after=1) == found[2:]


def test_what_a_trial_cost_never_falls(store, running):
    for epoch, passes, seconds in ((0, 100, 1.0), (1, 50, 2.0), (2, 60, 0.5)):
        store.record_epochs(running, [record(epoch, sample_passes=passes, seconds=seconds)])
    row = store.trial(running)
    assert (row.sample_passes, row.seconds) == (100, 2.0)


def test_what_is_no_number_is_kept_as_none_and_named(store, running):
    odd = {"train_loss": float("nan"), "telemetry": {"a/b": [1.0, float("-inf")]}, "failure": "bad\0 \ud800"}
    store.record_epochs(running, [record(0, **odd)])
    assert store.epochs(running)[0].metrics == {
        "train_loss": None,
        "telemetry": {"a/b": [1.0, None]},
        "failure": "bad\ufffd ?",
        "non_finite": {"train_loss": "nan", "telemetry.a/b.1": "-inf"},
    }
    store.finish_trial(running, "failed", reason="diverged\0", result={"validation_loss": float("inf")})
    row = store.trial(running)
    assert row.result == {"validation_loss": None, "non_finite": {"validation_loss": "inf"}}
    assert row.reason == "diverged\ufffd"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epoch": 0}, "an epoch record must have epoch, sample_passes and seconds, this one lacks"),
        (record(0, seconds=float("nan")), "seconds must be a finite number of 0 or more, got nan"),
        (record(0, seconds=-1.0), "seconds must be a finite number"),
        (record(-1), "epoch must be a whole number"),
        (record(0, sample_passes=1.5), "sample_passes must be a whole number"),
    ],
)
def test_a_bad_record_is_refused_with_all_that_came_with_it(store, running, bad, message):
    with pytest.raises(ValueError, match=message):
        store.record_epochs(running, [record(5), bad])
    assert store.epochs(running) == ()
    assert store.trial(running).sample_passes == 0


def test_epochs_are_recorded_only_while_a_trial_runs(store, queue):
    trial = queue().id
    with pytest.raises(StateError, match="is 'queued': epochs can be recorded only while it is 'running'"):
        store.record_epochs(trial, [record(0)])
    store.start_attempt(trial)
    finish(store, trial, "complete")
    with pytest.raises(StateError, match="is 'complete': epochs can be recorded only"):
        store.record_epochs(trial, [record(0)])
    assert store.epochs(trial) == ()


@pytest.mark.parametrize(("end", "attempt"), [("complete", "complete"), ("failed", "failed"), ("pruned", "complete")])
def test_a_trial_ends_once_and_its_attempt_with_it(store, running, end, attempt):
    finish(store, running, end)
    row = store.trial(running)
    assert (row.state, row.score, row.reason) == (end, 0.5, "because")
    assert row.created_at <= row.started_at <= row.finished_at
    assert [(item.state, item.error) for item in store.attempts(running)] == [(attempt, "because")]
    store.finish_trial(running, end, score=0.9, reason="other")
    assert store.trial(running) == row


@pytest.mark.parametrize(
    ("first", "second"), [pair for pair in product(ENDS, [*ENDS, "running"]) if pair[0] != pair[1]]
)
def test_how_a_trial_ended_does_not_change(store, running, first, second):
    finish(store, running, first)
    row, attempts = store.trial(running), store.attempts(running)
    with pytest.raises(StateError, match=f"is '{first}' and cannot become '{second}': a terminal state is final"):
        store.start_attempt(running) if second == "running" else finish(store, running, second)
    assert (store.trial(running), store.attempts(running)) == (row, attempts)


def test_a_trial_that_never_ran_fails_but_is_not_complete(store, queue):
    trial = queue().id
    with pytest.raises(StateError, match="is 'queued' and cannot become 'complete': start an attempt first"):
        finish(store, trial, "complete")
    finish(store, trial, "failed")
    assert (store.trial(trial).state, store.attempts(trial)) == ("failed", ())


@pytest.mark.parametrize(
    ("state", "values", "message"),
    [
        ("complete", {}, "a complete trial must have a score"),
        ("complete", {"score": float("nan")}, "the score of trial .* must be finite, got nan; finish it as failed"),
        ("failed", {}, "a failed trial must have a reason"),
        ("queued", {}, "must be one of complete, failed, pruned, got 'queued'"),
    ],
)
def test_an_end_without_what_it_needs_is_refused(store, running, state, values, message):
    with pytest.raises(ValueError, match=message):
        store.finish_trial(running, state, **values)
    assert store.trial(running).state == "running"


def test_the_architecture_that_a_trial_ended_in_is_kept(store, running):
    result = {"architecture": TREE, "architecture_hash": "abc", "macs": 12}
    store.finish_trial(running, "complete", score=0.5, result=result)
    assert architectures(store) == {"abc": TREE}
    assert store.trial(running).result == result
    assert store.trial(running).architecture_hash is None  # what was proposed, which is nothing


def test_what_a_driver_left_running_is_queued_again(store, study, queue):
    left = [queue().id for _ in range(2)]
    done, waiting = queue().id, queue().id
    for trial in (*left, done):
        store.start_attempt(trial)
    store.record_epochs(left[0], [record(0)])
    finish(store, done, "complete")
    other = store.create_study("other", config={}, config_hash="x", arms=["a"]).name
    elsewhere = store.add_trial(other, arm="a", phase="search", number=0, seed=0, planned=0, experiment={}).id
    store.start_attempt(elsewhere)
    assert store.requeue_running(study) == tuple(left)
    assert store.requeue_running(study) == ()
    assert [store.trial(trial).state for trial in (*left, done, waiting, elsewhere)] == [
        "queued", "queued", "complete", "queued", "running"
    ]  # fmt: skip
    assert [store.attempts(trial)[-1].state for trial in (*left, done, elsewhere)] == [
        "lost", "lost", "complete", "running"
    ]  # fmt: skip
    assert store.trial(left[0]).sample_passes == 10
    assert store.start_attempt(left[0]).number == 1


def test_spending_is_what_the_trials_say(store, study, queue):
    ends = ["complete", "failed", "pruned", "complete", None, "failed"]
    for index, (end, arm, phase) in enumerate(product(ends, ["random", "blockout"], ["search", "retrain"])):
        trial = queue(arm=arm, phase=phase, planned=1000 + index, suggest_seconds=index / 8).id
        store.start_attempt(trial)
        store.record_epochs(trial, [record(0, sample_passes=7 * index + 1, seconds=index / 4)])
        if end:
            store.finish_trial(trial, end, score=index / 100, reason="why")
    found = store.spent(study)
    assert [(row.arm, row.phase) for row in found] == [*product(["random", "blockout"], ["search", "retrain"])]
    for row in found:
        trials = store.trials(study, arm=row.arm, phase=row.phase)
        states = [trial.state for trial in trials]
        assert (row.trials, row.queued, row.running) == (len(trials), 0, 1)
        assert [getattr(row, end) for end in ENDS] == [states.count(end) for end in ENDS] == [2, 2, 1]
        for name in ("planned", "sample_passes", "seconds", "suggest_seconds"):
            assert getattr(row, name) == sum(getattr(trial, name) for trial in trials)
        for end in ("failed", "pruned"):
            passes = sum(trial.sample_passes for trial in trials if trial.state == end)
            assert getattr(row, f"{end}_sample_passes") == passes > 0
        assert row.best == max(trial.score for trial in trials if trial.state == "complete")
        assert all(type(getattr(row, name)) is int for name in ("planned", "sample_passes", "queued", "pruned"))


def test_an_arm_without_trials_has_spent_nothing(store, study, queue):
    assert store.spent(study) == ()
    queue(arm="blockout")
    assert [(row.arm, row.queued, row.best) for row in store.spent(study)] == [("blockout", 1, None)]
