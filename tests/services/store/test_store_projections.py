"""What leaves the store, on every database: exports, and how far the world outside has been told."""

import pytest

from services.store import NotFound, ProjectionRow


def test_an_export_is_noted_and_replaced_at_the_same_path(store, study, queue):
    second, first = queue(arm="blockout").id, queue(arm="random").id
    made = store.add_export(second, path="models/blockout", hashes={"model.pt2": "aa"}, verified=False)
    store.add_export(first, path="models/random", hashes={"model.pt2": "cc"}, verified=True)
    again = store.add_export(second, path="models/blockout", hashes={"model.pt2": "bb"}, verified=True)
    assert (made.id, made.hashes, made.verified) == (again.id, {"model.pt2": "aa"}, False)
    assert (again.trial, again.arm, again.hashes, again.verified) == (second, "blockout", {"model.pt2": "bb"}, True)
    assert [row.path for row in store.exports(study)] == ["models/random", "models/blockout"]
    assert store.exports(study)[1] == again
    assert again.created_at >= made.created_at


def test_nothing_is_noted_of_a_trial_that_is_not_there(store, study):
    with pytest.raises(NotFound, match="no trial 41"):
        store.add_export(41, path="x", hashes={}, verified=True)
    with pytest.raises(NotFound, match="no trial 41"):
        store.record_projection(study, target="mlflow", external_id="a", trial=41)


@pytest.mark.parametrize("of_trial", [False, True])
def test_what_was_told_only_goes_forward(store, study, queue, of_trial):
    trial = queue().id if of_trial else None

    def tell(external_id: str, epoch: int, done: bool) -> ProjectionRow:
        store.record_projection(
            study, target="mlflow", external_id=external_id, trial=trial, synced_epoch=epoch, done=done
        )
        (row,) = store.projections(study, "mlflow")
        return row

    assert tell("run-1", -1, False) == ProjectionRow(trial, "mlflow", "run-1", -1, False)
    assert tell("run-1", 4, False) == ProjectionRow(trial, "mlflow", "run-1", 4, False)
    assert tell("run-1", 2, True) == ProjectionRow(trial, "mlflow", "run-1", 4, True)
    assert tell("run-1", 5, False) == ProjectionRow(trial, "mlflow", "run-1", 5, True)
    assert tell("run-2", 0, False) == ProjectionRow(trial, "mlflow", "run-2", 0, False)


def test_study_and_trials_are_told_apart_and_by_target(store, study, queue):
    trials = [queue().id for _ in range(2)]
    for trial in (trials[1], None, trials[0]):
        store.record_projection(study, target="mlflow", external_id=f"run-{trial}", trial=trial)
    store.record_projection(study, target="elsewhere", external_id="x")
    assert [row.trial for row in store.projections(study, "mlflow")] == [None, *trials]
    assert [row.external_id for row in store.projections(study, "elsewhere")] == ["x"]
    assert store.projections(study, "nobody") == ()
