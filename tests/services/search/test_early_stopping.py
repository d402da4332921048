"""Early stopping decides as Optuna's pruners do, epoch by epoch, on curves that go up and down."""

import random
from collections.abc import Callable

import optuna
import pytest
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, PatientPruner, SuccessiveHalvingPruner

from services.search.stopping_rules import Hyperband, early_stopping
from services.study_config.searching.pruners import Pruner
from services.trial_record import SEARCH, Trial

EPOCHS = 12
TRIALS = 40


def curves(seed: int) -> list[list[float]]:
    draws = random.Random(seed)
    qualities = [draws.random() for _ in range(TRIALS)]
    # Rounded, so that some trials tie.
    return [
        [round(quality * (1 - 0.7**epoch) + 0.15 * draws.random(), 2) for epoch in range(1, EPOCHS + 1)]
        for quality in qualities
    ]


def ours(pruner: Pruner, seed: int) -> list[int]:
    """After how many epochs each trial ends."""
    stopping, ended = early_stopping(pruner.resolved(EPOCHS)), []
    for number, curve in enumerate(curves(seed)):
        trial = Trial("arm", SEARCH, number, 0, "running")
        for epoch in range(1, EPOCHS + 1):
            trial = Trial("arm", SEARCH, number, 0, "running", curve=tuple(curve[:epoch]))
            stopping.update(trial)
            if epoch < EPOCHS and stopping.reason_to_stop(trial, since=epoch - 1) is not None:
                break
        state = "complete" if len(trial.curve) == EPOCHS else "pruned"
        stopping.update(Trial("arm", SEARCH, number, 0, state, curve=trial.curve))
        ended.append(len(trial.curve))
    return ended


def theirs(pruner: BasePruner, seed: int, first_step: int) -> list[int]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="bracket")
    ended = []
    for curve in curves(seed):
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch - 1 + first_step)
            if epoch < EPOCHS and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
        ended.append(epoch)
    return ended


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("pruner", "optunas", "first_step"),
    [
        (
            Pruner(name="asha", rungs=[1, 2, 4, 8], reduction_factor=2),
            lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
            1,
        ),
        (Pruner(name="hyperband"), lambda: HyperbandPruner(max_resource=EPOCHS), 1),
        (
            Pruner(name="hyperband", min_epochs=2, reduction_factor=2),
            lambda: HyperbandPruner(min_resource=2, max_resource=EPOCHS, reduction_factor=2),
            1,
        ),
        (Pruner(name="median"), MedianPruner, 0),
        (
            Pruner(name="median", n_startup_trials=2, warmup_epochs=3, interval_epochs=2, min_trials=4),
            lambda: MedianPruner(2, n_warmup_steps=3, interval_steps=2, n_min_trials=4),
            0,
        ),
        (Pruner(name="patient", patience=1), lambda: PatientPruner(None, 1), 0),
        (Pruner(name="patient", patience=2, min_delta=0.03), lambda: PatientPruner(None, 2, 0.03), 0),
        (
            Pruner(name="patient", patience=0, wraps="median", n_startup_trials=3),
            lambda: PatientPruner(MedianPruner(3), 0),
            0,
        ),
    ],
    ids=["halving", "hyperband", "late hyperband", "median", "late median", "patient", "delta", "patient median"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_trial_ends_where_optuna_ends_it(
    pruner: Pruner, optunas: Callable[[], BasePruner], first_step: int, seed: int
) -> None:
    ended = ours(pruner, seed)
    assert ended == theirs(optunas(), seed, first_step)
    assert len(set(ended)) > 2


def test_each_bracket_has_its_share_of_the_trials_and_one_stops_none() -> None:
    hyperband = early_stopping(Pruner(name="hyperband").resolved(9))
    assert isinstance(hyperband, Hyperband)
    rungs = [hyperband.rungs(number) for number in range(1700)]
    # Of the brackets with s = 0, 1, 2: 3 * 3^s / (s + 1) rounded up, which is 3, 5 and 9 of 17.
    shares = {each: rungs.count(each) / len(rungs) for each in set(rungs)}
    assert set(shares) == {(1, 3), (3,), ()}
    for each, share in {(1, 3): 9 / 17, (3,): 5 / 17, (): 3 / 17}.items():
        assert abs(shares[each] - share) < 0.04


def test_a_pruner_waits_only_where_it_may_decide() -> None:
    patient = Pruner(name="patient", patience=2, wraps="median", interval_epochs=3).resolved(EPOCHS)
    assert early_stopping(patient).rungs(0) == (4, 7, 10)
    assert patient.earliest == 4
    assert early_stopping(Pruner(name="patient", patience=8).resolved(EPOCHS)).rungs(0) == (10, 11)
    assert Pruner(name="median", warmup_epochs=4).resolved(EPOCHS).earliest == 5


def test_what_wraps_halving_compares_with_trials_that_improve() -> None:
    pruner = Pruner(name="patient", patience=0, wraps="asha", rungs=[3], reduction_factor=2).resolved(EPOCHS)
    stopping = early_stopping(pruner)
    falls, rises = (0.5, 0.4, 0.3), (0.1, 0.2, 0.9)
    for number, curve in enumerate([rises, falls]):
        stopping.update(Trial("arm", SEARCH, number, 0, "running", curve=curve))
    stop = stopping.reason_to_stop(Trial("arm", SEARCH, 1, 0, "running", curve=falls), since=2)
    assert stop is not None
    assert stop[0] == 3
    assert stop[1].startswith("stopped early after 3 epochs: validation accuracy 0.3000, at most 0.3000 in the last 1 ")
    assert "1 of the 2 trials that reached this rung are better" in stop[1]
    low = (0.1, 0.15, 0.2)  # the worst, but it improves
    stopping.update(Trial("arm", SEARCH, 2, 0, "running", curve=low))
    assert stopping.reason_to_stop(Trial("arm", SEARCH, 2, 0, "running", curve=low), since=2) is None
