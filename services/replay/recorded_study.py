"""Replays of the searches of a study in the store."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from nas_blockout.data import load
from nas_blockout.serialization import near
from nas_blockout.settings_fields import Conflict
from search_spaces import Context, compose, space_named
from services.replay.reproduction import Reproduction, faithful, reproduce
from services.replay.results import Outcome, outcome
from services.replay.simulation import Ended, Proposer, SchedulerProposer, ShuffledProposer, simulate, single_arm
from services.search.proposals import derived_seed
from services.search_plugins import SEARCHER_CHOICES, SEARCHERS
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.errors import StudyError
from services.study_config.resolved_study import Study, parse_resolved
from services.study_config.search_options import Options
from services.study_config.searching.search_code import unsearchable
from services.study_config.searching.searchers import PluginSearcher, SearcherOptions
from services.trial_record import SEARCH, Trial


@dataclass(frozen=True, slots=True)
class Request:
    """What to replay.

    Args:
        searcher: Search algorithm; by default, that of each arm.
        workers: Numbers of simulated workers; each is replayed.
        repeats: Number of replays for each number of workers, each with its own seed.
        arm: Name of the arm to replay; by default, every arm that searched.
        seed: Seed of the first replay; by default, that of the study.
        target: Validation accuracy to reach, in [0, 1]; by default, the best recorded one of each arm.
    """

    searcher: str | None = None
    workers: Sequence[int] = (1,)
    repeats: int = 20
    arm: str | None = None
    seed: int | None = None
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """Results of a replay.

    Args:
        study: Name of the study.
        searchers: Search algorithm of the replay, by arm.
        recorded: Search algorithm of the recorded trials, by arm.
        seed: Seed of the first replay.
        reproduction: Whether the scheduler proposes the recorded trials again, by arm.
        outcomes: One result for each arm and number of workers.
    """

    study: str
    searchers: dict[str, str]
    recorded: dict[str, str]
    seed: int
    reproduction: dict[str, Reproduction]
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain JSON types."""
        return {
            "study": self.study,
            "seed": self.seed,
            "searchers": self.searchers,
            "recorded_searchers": self.recorded,
            "reproduced": faithful(self.reproduction),
            "reproduction": {arm: asdict(result) for arm, result in self.reproduction.items()},
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
        }


class _Shape(TypedDict):
    shape: tuple[int, int, int]
    classes: int
    images: int


def replay(settings: Settings, name: str, request: Request) -> Replayed:
    """Replay the searches of a study; nothing is trained and nothing is written.

    The scheduler that runs studies also asks for the proposals of a replay. For each proposal, the nearest recorded
    trial of the arm that the replay has not used yet is taken; the distance is 0 if the proposal itself was recorded.
    With the searcher of the arm and the seed of the study, a replay therefore repeats the study. Random search with any
    other seed takes the recorded trials in random order instead, which needs no approximation: random trials in random
    order are a random search.

    Raises:
        StudyError: There is no such searcher.
        NotFound: There is no such study, or it has no recorded search of the arm.
        DataMissing: The data is not on this machine, but proposals depend on its shape.
    """
    if request.searcher is not None:
        request = replace(request, searcher=_known(request.searcher))
    with Store.open(settings.store_url) as store:
        # Read once: a study that is still running would change between the replays.
        row, events, trials = store.study(name), store.events(name), store.trials(name)
    study = parse_resolved(row.config)
    pools = _pools(study, trials, request.arm)
    _require_usable(study, pools, request.searcher)
    splits = load(study.data, root=settings.data)
    data = _Shape(shape=splits.shape, classes=len(splits.class_names), images=len(splits.train))
    _require_searchable(study, pools, request.searcher, data)
    outcomes = [
        _outcome(study, arm, pool, data, request, workers) for arm, pool in pools.items() for workers in request.workers
    ]
    return Replayed(
        study=name,
        searchers={arm: _searcher(study, arm, request) for arm in pools},
        recorded={arm: study.arms[arm].searcher for arm in pools},
        seed=_seed(study, request),
        reproduction=reproduce(row, events, trials, **data, arms=pools if request.arm else None),
        outcomes=tuple(outcomes),
    )


def _known(searcher: str) -> str:
    """Return the one name of a search algorithm.

    Raises:
        StudyError: There is none of that name, or it cannot be used.
    """
    try:
        SEARCHER_CHOICES.named(searcher)
        return SEARCHER_CHOICES.canonical(searcher)
    except Conflict as error:
        raise StudyError(f"--{error}") from None


def _require_usable(study: Study, arms: Iterable[str], searcher: str | None) -> None:
    """Refuse a searcher that cannot search these arms.

    Raises:
        StudyError: It lacks a package, or an arm has several objectives and it compares trials by one number, or it
            declares that it lacks something else that an arm asks of it.
    """
    if searcher is None:
        return
    for arm in arms:
        rules = study.arms[arm].rules
        options = Options(
            searcher=SearcherOptions(name=searcher) if searcher in SEARCHERS else PluginSearcher(name=searcher),
            grid_points=None,
            n_startup_trials=None,
            pruner=None,
            constraints=rules.constraints,
            objectives=rules.objectives,
            selection=None,
            enqueue=(),
        )
        for conflict in options.conflicts(epochs=study.arms[arm].experiment.training.epochs):
            raise StudyError(f"--{conflict}; or name another arm than {arm!r} by --arm")


def _require_searchable(study: Study, arms: Iterable[str], searcher: str | None, data: _Shape) -> None:
    """Refuse a searcher that declares that it cannot search the spaces of these arms.

    Raises:
        StudyError: It cannot.
    """
    for name in arms if searcher is not None else ():
        arm = study.arms[name]
        context = Context(arm.experiment, data["shape"], data["classes"])
        for conflict in unsearchable(searcher or "", compose([space_named(each) for each in arm.spaces]), context):
            raise StudyError(f"--{conflict}")


def _pools(study: Study, trials: Sequence[Trial], arm: str | None) -> dict[str, list[Trial]]:
    if arm is not None and arm not in study.arms:
        raise NotFound(f"study {study.name!r} has no arm {arm!r}; {near(arm, study.arms)}")
    recorded: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        # A trial without planned passes records that the search was exhausted; it was never trained.
        if trial.phase == SEARCH and trial.ended and trial.planned and arm in (None, trial.arm):
            recorded.setdefault(trial.arm, []).append(trial)
    pools = {
        name: recorded[name] for name in study.arms if any(trial.score is not None for trial in recorded.get(name, []))
    }
    if not pools:
        subject = f"arm {arm!r} of study {study.name!r} has no" if arm else f"no arm of study {study.name!r} has a"
        raise NotFound(f"{subject} recorded search to replay")
    return pools


def _outcome(study: Study, arm: str, pool: list[Trial], data: _Shape, request: Request, workers: int) -> Outcome:
    target = request.target
    if target is None:
        target = max(trial.score for trial in pool if trial.score is not None)
    replays: list[list[Ended]] = []
    for repeat in range(request.repeats):
        seed = _seed(study, request) if repeat == 0 else derived_seed(_seed(study, request), repeat)
        searcher = _searcher(study, arm, request)
        # Only this replay can be compared with the study, trial by trial; every other one is another draw.
        repeats_study = searcher == study.arms[arm].searcher and seed == study.config.seed
        proposer: Proposer = (
            ShuffledProposer(pool, seed)
            if searcher == "random" and not repeats_study
            else SchedulerProposer(single_arm(study, arm, searcher=searcher, seed=seed), pool, **data)
        )
        replays.append(simulate(pool, proposer, workers))
    return outcome(arm, pool, replays, workers=workers, target=target)


def _searcher(study: Study, arm: str, request: Request) -> str:
    return request.searcher or study.arms[arm].searcher


def _seed(study: Study, request: Request) -> int:
    return study.config.seed if request.seed is None else request.seed
