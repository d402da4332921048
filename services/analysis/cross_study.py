"""Comparison across studies of the same data: one table of arms, and tests between arms of different studies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from nas_blockout.serialization import to_json
from nas_blockout.statistics import significance
from services.analysis.comparison import ArmResult, build
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.errors import StudyError
from services.study_config.resolved_study import Study, parse_resolved

UNEQUAL = "not at equal cost"


@dataclass(frozen=True, slots=True)
class Contestant:
    """An arm of one of the studies."""

    study: str
    name: str
    result: ArmResult

    @property
    def key(self) -> str:
        """Study and arm."""
        return f"{self.study}/{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the arm as plain JSON types."""
        return {"study": self.study, "arm": self.name, **self.result.model_dump(mode="json")}


@dataclass(frozen=True, slots=True)
class Difference:
    """Test accuracy of ``a`` minus that of ``b``, arms of different studies, on the seeds that they share.

    Args:
        a: Study and arm.
        b: Study and arm.
        difference: Of the means, in 0..1.
        ci95: Its 95% interval, uncorrected, or None.
        seeds: How many they share.
        p_holm: Corrected over all pairs.
        smallest_effect: Smallest difference that so many seeds could have shown, or None.
        cost: Sample passes of ``a`` as a multiple of those of ``b``.
        verdict: ``better``, ``worse``, ``no difference shown``, or ``not at equal cost``.
    """

    a: str
    b: str
    difference: float
    ci95: tuple[float, float] | None
    seeds: int
    p_holm: float
    smallest_effect: float | None
    cost: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Across:
    """Arms of several studies, best first, and the differences between those of different studies."""

    studies: tuple[str, ...]
    data: Mapping[str, Any]
    arms: tuple[Contestant, ...]
    pairs: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "studies": list(self.studies),
            "data": dict(self.data),
            "arms": [arm.to_json() for arm in self.arms],
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def compare(settings: Settings, names: Sequence[str], *, arms: Sequence[str] = ()) -> Across:
    """Compare the arms of finished studies of the same data.

    Arms of different studies are tested in pairs on the retraining seeds that they share: with the same data and seed
    the images and their order are the same. Arms of one study are compared by that study.

    Args:
        settings: Of the installation.
        names: Of the studies, two or more.
        arms: Names of the arms to compare; all if left out.

    Raises:
        NotFound: There is no such study, it has not finished, or no study has such an arm.
        StudyError: There are fewer than two studies, or they learn from different data.
    """
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) < 2:
        raise StudyError(f"compare takes two or more studies, got {', '.join(distinct) or 'none'}")
    with Store.open(settings.store_url) as store:
        studies = {name: _finished(store, name) for name in distinct}
        _require_same_data(studies)
        contestants = [arm for name, study in studies.items() for arm in _contestants(store, name, study)]
    chosen = [arm for arm in contestants if not arms or arm.name in arms]
    known = dict.fromkeys(arm.name for arm in contestants)
    if unknown := [name for name in arms if name not in known]:
        raise NotFound(f"none of the studies has an arm {unknown[0]!r}; they have {', '.join(known)}")
    tolerance = min(study.config.budget.tolerance for study in studies.values())
    ordered = sorted(chosen, key=_by_accuracy)
    data = to_json(next(iter(studies.values())).data)
    return Across(distinct, data, tuple(ordered), tuple(_differences(ordered, tolerance)))


def _finished(store: Store, name: str) -> Study:
    row = store.study(name)
    if row.state != "complete":
        raise NotFound(f"study {name!r} has not finished; `nas-blockout run` goes on with it")
    return parse_resolved(row.config)


def _require_same_data(studies: Mapping[str, Study]) -> None:
    (first, reference), *others = ((name, to_json(study.data)) for name, study in studies.items())
    for name, data in others:
        if differing := [key for key in {**reference, **data} if reference.get(key) != data.get(key)]:
            values = ", ".join(
                f"data.{key} is {reference.get(key)!r} in {first} and {data.get(key)!r} in {name}" for key in differing
            )
            raise StudyError(f"studies of different data cannot be compared: {values}")


def _contestants(store: Store, name: str, study: Study) -> Iterator[Contestant]:
    document = build(study, store.trials(name))
    for arm, result in document.arms.items():
        yield Contestant(name, arm, result)


def _by_accuracy(arm: Contestant) -> tuple[float, str]:
    accuracy = arm.result.test_accuracy
    return (-accuracy.mean if accuracy else 1.0, arm.key)


def _differences(arms: Sequence[Contestant], tolerance: float) -> Iterator[Difference]:
    scores = {arm.key: arm.result.test_accuracy.by_seed for arm in arms if arm.result.test_accuracy is not None}
    spent = {arm.key: float(arm.result.cost.sample_passes) for arm in arms}
    pairs = [
        (a.key, b.key)
        for a, b in combinations(arms, 2)
        if a.study != b.study and len(scores.get(a.key, {}).keys() & scores.get(b.key, {}).keys()) > 1
    ]
    for pair in significance.compare(scores, pairs=pairs).pairs if pairs else ():
        costs = {key: spent[key] for key in (pair.a, pair.b)}
        fair = significance.budget_disagreement(costs, tolerance) is None
        yield Difference(
            a=pair.a,
            b=pair.b,
            difference=pair.test.difference,
            ci95=pair.test.ci95,
            seeds=pair.test.n,
            p_holm=pair.p_holm,
            smallest_effect=pair.smallest_effect,
            cost=spent[pair.a] / spent[pair.b],
            verdict=pair.verdict if fair else UNEQUAL,
        )
