"""The laws of early stopping: what decides whether trials train on must do."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from services.search.stopping_rules import early_stopping
from services.study_config.resolved_study import Study, parse_resolved
from services.testing.made_up_search import scheduler_of, searched, study_of
from services.trial_record import Trial


@dataclass(frozen=True, slots=True)
class PrunerCase:
    """One way of early stopping under the laws.

    Args:
        pruner: Its name, as in a study file.
        settings: Its settings, by name; others have their defaults.
        epochs: Of a trial.
        trials: Whole search trials that the budget pays for; stopped ones leave room for more.
    """

    pruner: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 9
    trials: int = 12


def pruner_laws(case: PrunerCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws of early stopping, by what they say.

    Args:
        case: What stops trials.
    """
    laws: list[Callable[[PrunerCase], None]] = [
        a_study_comes_back_from_its_resolved_form,
        trials_are_compared_before_their_last_epoch,
        some_trials_are_stopped_and_some_are_not,
        an_interruption_changes_no_decision,
        decisions_do_not_depend_on_the_order_of_what_is_known,
    ]
    return {law.__name__: partial(law, case) for law in laws}


def a_study_comes_back_from_its_resolved_form(case: PrunerCase) -> None:
    """JSON carries every setting."""
    study = _study(case)
    again = parse_resolved(json.loads(json.dumps(study.to_json())))
    assert again.arms["arm"] == study.arms["arm"]
    assert again.hash == study.hash


def trials_are_compared_before_their_last_epoch(case: PrunerCase) -> None:
    """Rungs rise, from the first epoch to the last but one."""
    pruner = _study(case).arms["arm"].rules.pruner
    assert pruner is not None
    stopping = early_stopping(pruner)
    for number in range(20):
        rungs = stopping.rungs(number)
        assert list(rungs) == sorted(set(rungs)), f"the rungs of trial {number} rise, got {rungs}"
        assert all(0 < rung < case.epochs for rung in rungs), f"rungs of trial {number} are in 1..{case.epochs - 1}"


def some_trials_are_stopped_and_some_are_not(case: PrunerCase) -> None:
    """A search whose trials are all stopped has no winner, and one without any stopped needs no pruner."""
    states = {trial.state for trial in searched(_study(case))}
    assert "complete" in states, "no trial was trained to its end"
    assert "pruned" in states, "no trial was stopped; make up more of them (PrunerCase.trials)"


def an_interruption_changes_no_decision(case: PrunerCase) -> None:
    """Nothing is kept in memory but what the trials give back."""
    study = _study(case)
    whole = searched(study)
    for number in range(1, len(whole)):
        resumed = searched(study, known=whole[:number], most=number + 1)
        assert _ends(resumed) == _ends(whole[: number + 1]), f"resumed after {number} trials"


def decisions_do_not_depend_on_the_order_of_what_is_known(case: PrunerCase) -> None:
    """The store gives trials back in any order, and a trial may be told twice."""
    study = _study(case)
    whole = searched(study)
    shuffled = random.Random(0).sample(whole, len(whole))  # noqa: S311  # no secret
    orders = (whole, shuffled, [*shuffled, *shuffled[:3]])
    reasons = []
    for order in orders:
        scheduler = scheduler_of(study, order)
        reasons.append([scheduler.reason_to_stop(trial, since=0) for trial in whole])
    assert reasons[0] == reasons[1] == reasons[2], "decisions depend on the order in which trials are told"


def _study(case: PrunerCase) -> Study:
    pruner = {"name": case.pruner, **case.settings}
    return study_of({"space": ["training"], "pruner": pruner}, trials=case.trials, epochs=case.epochs)


def _ends(trials: list[Trial]) -> list[tuple[str, int, str | None]]:
    return [(trial.state, len(trial.curve), trial.reason) for trial in trials]
