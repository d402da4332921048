"""The laws of search algorithms: what proposes the settings of trials must do."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from nas_blockout.plugins.choices import require_settings
from nas_blockout.serialization import from_json, to_json
from search_spaces import Context, Recorded, compose, space_named
from services.search_plugins import algorithm_named
from services.study_config.resolved_study import Study, parse_resolved
from services.testing.made_up_search import CLASSES, SHAPE, searched, study_of
from services.trial_record import Trial


@dataclass(frozen=True, slots=True)
class SearchCase:
    """One search algorithm under the laws.

    Args:
        searcher: Its name, as in a study file.
        settings: Its settings, by name; others have their defaults.
        spaces: Names of the search spaces.
        trials: Search trials that are made up; enough to leave its random beginning behind, at least 3.
    """

    searcher: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    spaces: Sequence[str] = ("training",)
    trials: int = 12


def searcher_laws(case: SearchCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws of a search algorithm, by what they say.

    Args:
        case: The search algorithm.
    """
    laws: list[Callable[[SearchCase], None]] = [
        settings_are_a_value_that_json_carries,
        the_same_seed_proposes_the_same,
        a_search_resumed_at_any_trial_goes_on_as_if_uninterrupted,
        proposals_are_in_the_space,
        proposing_consumes_no_global_randomness,
    ]
    return {law.__name__: partial(law, case) for law in laws}


def settings_are_a_value_that_json_carries(case: SearchCase) -> None:
    """A study comes back from its resolved form, with the settings; those of a plug-in are a frozen dataclass."""
    study = _study(case)
    again = parse_resolved(json.loads(json.dumps(study.to_json())))
    assert again.arms["arm"] == study.arms["arm"]
    assert again.hash == study.hash
    algorithm = algorithm_named(case.searcher)
    if algorithm is not None:
        require_settings(algorithm.settings)
        settings = study.arms["arm"].rules.plugin_settings
        assert from_json(algorithm.settings, to_json(settings), where="searcher") == settings


def the_same_seed_proposes_the_same(case: SearchCase) -> None:
    """Proposals depend on the seed of the study and its trials alone."""
    first, second = searched(_study(case)), searched(_study(case))
    assert len(first) >= min(3, case.trials), "there are trials to compare"
    assert _difference(first, second) is None, _difference(first, second)


def a_search_resumed_at_any_trial_goes_on_as_if_uninterrupted(case: SearchCase) -> None:
    """Nothing is kept in memory between two proposals: whatever is needed follows from the trials."""
    study = _study(case)
    whole = searched(study)
    for number in range(1, len(whole)):
        resumed = searched(study, known=whole[:number], most=number + 1)
        assert _difference(whole[: number + 1], resumed) is None, (
            f"resumed after {number} trials: {_difference(whole[: number + 1], resumed)}"
        )


def proposals_are_in_the_space(case: SearchCase) -> None:
    """Every proposal has a value in its range for every parameter that the spaces ask for, and no other."""
    study = _study(case)
    arm = study.arms["arm"]
    space, context = compose([space_named(name) for name in arm.spaces]), Context(arm.experiment, SHAPE, CLASSES)
    for trial in searched(study):
        recorded = Recorded(trial.values)
        space(recorded, context)  # refuses what is missing, or out of its range
        assert recorded.asked == set(trial.values), f"trial {trial.number} has parameters that the spaces lack"


def proposing_consumes_no_global_randomness(case: SearchCase) -> None:
    """The random numbers of Python, NumPy and PyTorch are nobody's here: a sampler draws from its seed."""
    study = _study(case)

    def state() -> tuple[object, ...]:
        numpy: Any = np.random.get_state()  # noqa: NPY002  # the legacy state is what is watched
        return random.getstate(), numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()

    before = state()
    searched(study, most=min(6, case.trials))
    assert state() == before, "it draws from a global source of random numbers"


def _study(case: SearchCase, seed: int = 0) -> Study:
    searcher = {"name": case.searcher, **case.settings}
    return study_of({"space": list(case.spaces), "searcher": searcher}, trials=case.trials, epochs=3, seed=seed)


def _difference(first: Sequence[Trial], second: Sequence[Trial]) -> str | None:
    """Return the first trial in which two searches differ, in words, or None."""
    for one, other in zip(first, second, strict=False):
        if one.params != other.params:
            return f"trial {one.number} has {dict(one.values)} and {dict(other.values)}"
    return None if len(first) == len(second) else f"{len(first)} and {len(second)} trials"
