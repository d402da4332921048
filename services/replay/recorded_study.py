"""Replaying the searches of a study from what the store has of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, get_args

from nas_blockout.data import load
from nas_blockout.serialization import near
from services.execution.driver import entry_of
from services.replay.pool import Recorded
from services.replay.reproduction import Reproduction, faithful, reproduce
from services.replay.results import Outcome, outcome
from services.replay.simulation import Asked, Ended, Proposer, Shuffled, alone, simulate
from services.search import SEARCH, TERMINAL, derived_seed
from services.settings import Settings
from services.store import NotFound, Store, TrialRow
from services.study_config.schema import ArmConfig, Study, StudyError, parse_resolved


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be replayed.

    Args:
        searcher: Who proposes; the searcher of each arm if left out.
        workers: Numbers of simulated workers.
        repeats: Replays with each of them, with seeds of their own.
        arm: One arm; all that searched if left out.
        seed: Of the first replay; that of the study if left out.
        target: Validation accuracy to be reached, 0..1; the best that each arm recorded if left out.
    """

    searcher: str | None = None
    workers: Sequence[int] = (1,)
    repeats: int = 20
    arm: str | None = None
    seed: int | None = None
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found.

    Args:
        study: Name of the study.
        searchers: Who proposed, by arm.
        recorded: Who had proposed the recorded trials, by arm.
        seed: Of the first replay.
        reproduction: Whether what really happened is proposed again, by arm.
        outcomes: One for each arm and number of workers.
    """

    study: str
    searchers: dict[str, str]
    recorded: dict[str, str]
    seed: int
    reproduction: dict[str, Reproduction]
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what was found as plain JSON types."""
        return {
            "study": self.study,
            "seed": self.seed,
            "searchers": self.searchers,
            "recorded_searchers": self.recorded,
            "reproduced": faithful(self.reproduction),
            "reproduction": {arm: asdict(each) for arm, each in self.reproduction.items()},
            "outcomes": [each.to_json() for each in self.outcomes],
        }


class _Shape(TypedDict):
    shape: tuple[int, int, int]
    classes: int
    images: int


def replay(settings: Settings, name: str, request: Request) -> Replayed:
    """Replay the searches of a study; nothing is trained and nothing is written.

    A searcher that is asked proposes by the code that runs studies; the nearest recorded trial of the arm that the
    replay has not run yet answers, exactly where the proposal is among those recorded. With the arm's own searcher and
    the seed of the study that is what really happened. Random search with any other seed draws the recorded trials in
    another order: a random order of random trials is a random search, at no distance from what was proposed.

    Raises:
        StudyError: There is no such searcher.
        NotFound: There is no such study, or the arm has no recorded search.
        DataMissing: The data is away; its shape decides what can be proposed.
    """
    _require_known(request.searcher)
    with Store.open(settings.store_url) as store:
        row, events, trials = store.study(name), store.events(name), store.trials(name)
    study = parse_resolved(row.config)
    pools = _pools(study, trials, request.arm)
    splits = load(study.data, root=settings.data)
    data = _Shape(shape=splits.shape, classes=len(splits.class_names), images=len(splits.train))
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


def _pools(study: Study, trials: Sequence[TrialRow], arm: str | None) -> dict[str, list[Recorded]]:
    if arm is not None and arm not in study.arms:
        raise NotFound(f"study {study.name!r} has no arm {arm!r}; it has {', '.join(study.arms)}")
    pools: dict[str, list[Recorded]] = {}
    for row in sorted(trials, key=lambda row: row.number):
        if row.phase == SEARCH and row.state in TERMINAL and row.planned and arm in (None, row.arm):
            pools.setdefault(row.arm, []).append(Recorded(entry_of(row), row.seconds))
    found = {name: pools[name] for name in study.arms if any(_scored(each) for each in pools.get(name, []))}
    if not found:
        raise NotFound(f"{f'arm {arm!r}' if arm else 'no arm'} of study {study.name!r} has recorded a search to replay")
    return found


def _scored(recorded: Recorded) -> bool:
    return recorded.entry.score is not None


def _outcome(study: Study, arm: str, pool: list[Recorded], data: _Shape, request: Request, workers: int) -> Outcome:
    target = request.target
    if target is None:
        target = max(each.entry.score for each in pool if each.entry.score is not None)
    replays: list[list[Ended]] = []
    for repeat in range(request.repeats):
        seed = _seed(study, request) if repeat == 0 else derived_seed(_seed(study, request), repeat)
        proposer = _proposer(study, arm, pool, data, searcher=_searcher(study, arm, request), seed=seed)
        replays.append(simulate(pool, proposer, workers))
    return outcome(arm, pool, replays, workers=workers, target=target)


def _proposer(study: Study, arm: str, pool: list[Recorded], data: _Shape, *, searcher: str, seed: int) -> Proposer:
    own = searcher == study.arms[arm].searcher and seed == study.config.seed
    if searcher == "random" and not own:
        return Shuffled(pool, seed)
    return Asked(alone(study, arm, searcher=searcher, seed=seed), pool, **data)


def _require_known(searcher: str | None) -> None:
    kind, _ = get_args(ArmConfig.model_fields["searcher"].annotation)
    if searcher is not None and searcher not in get_args(kind):
        raise StudyError(f"--searcher: no such searcher {searcher!r}; {near(searcher, get_args(kind))}")


def _searcher(study: Study, arm: str, request: Request) -> str:
    return request.searcher or study.arms[arm].searcher


def _seed(study: Study, request: Request) -> int:
    return study.config.seed if request.seed is None else request.seed
