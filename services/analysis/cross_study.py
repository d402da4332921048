"""Comparison across studies of the same data: a table of all arms, and tests between arms of different studies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from nas_blockout.serialization import to_json
from nas_blockout.statistics import significance
from services.analysis.compare import build
from services.analysis.comparison import ArmResult
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.errors import StudyError
from services.study_config.resolved_study import Study, parse_resolved

UNEQUAL = "not at equal cost"


@dataclass(frozen=True, slots=True)
class StudyArm:
    """An arm, its study and its result."""

    study: str
    name: str
    result: ArmResult

    @property
    def key(self) -> str:
        """Name of the study and of the arm, unique in the comparison."""
        return f"{self.study}/{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the arm as plain JSON types."""
        return {"study": self.study, "arm": self.name, **self.result.model_dump(mode="json")}


@dataclass(frozen=True, slots=True)
class Difference:
    """Test accuracy of ``a`` minus that of ``b``, two arms of different studies, on the seeds that both have.

    Args:
        a: First arm, as ``study/arm``.
        b: Second arm, as ``study/arm``.
        difference: Difference of the means, in [-1, 1].
        ci95: 95% interval of the difference, not corrected for the number of pairs, or None.
        seeds: Number of shared seeds.
        p_holm: p value after Holm's correction over all pairs.
        smallest_effect: Smallest difference that this number of seeds could have shown, or None.
        cost: Sample passes of ``a`` divided by those of ``b``.
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
class CrossStudyComparison:
    """The arms of several studies, best first, and the differences between arms of different studies."""

    studies: tuple[str, ...]
    data: Mapping[str, Any]
    arms: tuple[StudyArm, ...]
    pairs: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON types."""
        return {
            "studies": list(self.studies),
            "data": dict(self.data),
            "arms": [arm.to_json() for arm in self.arms],
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def compare(settings: Settings, names: Sequence[str], *, arms: Sequence[str] = ()) -> CrossStudyComparison:
    """Compare the arms of finished studies of the same data.

    Arms of different studies are tested in pairs, on the retraining seeds that both have: with the same data and seed,
    training images and their order are the same. Pairs of arms of the same study are left to the study's own report.

    Args:
        settings: Settings of the installation.
        names: Names of at least two studies.
        arms: Names of the arms to compare; by default, all.

    Raises:
        NotFound: There is no such study, it has not finished, or no study has such an arm.
        StudyError: Fewer than two studies are named, or they use different data.
    """
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) < 2:
        raise StudyError(f"compare needs two or more studies, got {', '.join(distinct) or 'none'}")
    with Store.open(settings.store_url) as store:
        studies = {name: _finished(store, name) for name in distinct}
        _require_same_data(studies)
        everything = [arm for name, study in studies.items() for arm in _arms_of(store, name, study)]
    chosen = [arm for arm in everything if not arms or arm.name in arms]
    known = dict.fromkeys(arm.name for arm in everything)
    if unknown := [name for name in arms if name not in known]:
        raise NotFound(f"none of the studies has an arm {unknown[0]!r}; they have {', '.join(known)}")
    tolerance = min(study.config.budget.tolerance for study in studies.values())
    ordered = sorted(chosen, key=_by_accuracy)
    data = to_json(next(iter(studies.values())).data)
    overlap = significance.overlap_of_folds(next(iter(studies.values())).data.folds)
    return CrossStudyComparison(distinct, data, tuple(ordered), tuple(_differences(ordered, tolerance, overlap)))


def _finished(store: Store, name: str) -> Study:
    row = store.study(name)
    if row.state != "complete":
        raise NotFound(f"study {name!r} has not finished; resume it with `nas-blockout run`")
    return parse_resolved(row.config)


def _require_same_data(studies: Mapping[str, Study]) -> None:
    (first, reference), *others = ((name, to_json(study.data)) for name, study in studies.items())
    for name, data in others:
        if differing := [key for key in {**reference, **data} if reference.get(key) != data.get(key)]:
            values = ", ".join(
                f"data.{key} is {reference.get(key)!r} in {first} and {data.get(key)!r} in {name}" for key in differing
            )
            raise StudyError(f"studies of different data cannot be compared: {values}")
    _require_same_folds(studies)


def _require_same_folds(studies: Mapping[str, Study]) -> None:
    """Refuse studies in which a seed holds out different folds: its trainings would not be those of one seed."""
    held_out: dict[int, tuple[str, int]] = {}
    for name, study in studies.items():
        for fold, seed in enumerate(study.config.retrain.seeds if study.data.folds is not None else ()):
            first, other = held_out.setdefault(seed, (name, fold))
            if other != fold:
                raise StudyError(
                    f"seeds must hold out one fold in all studies that are compared: seed {seed} is fold {other} in "
                    f"{first} and fold {fold} in {name}; the order of retrain.seeds decides"
                )


def _arms_of(store: Store, name: str, study: Study) -> Iterator[StudyArm]:
    document = build(study, store.trials(name))
    for arm, result in document.arms.items():
        yield StudyArm(name, arm, result)


def _by_accuracy(arm: StudyArm) -> tuple[float, str]:
    accuracy = arm.result.test_accuracy
    return (-accuracy.mean if accuracy else 1.0, arm.key)


def _differences(arms: Sequence[StudyArm], tolerance: float, overlap: float) -> Iterator[Difference]:
    scores = {arm.key: arm.result.test_accuracy.by_seed for arm in arms if arm.result.test_accuracy is not None}
    spent = {arm.key: float(arm.result.cost.sample_passes) for arm in arms}
    pairs = [
        (a.key, b.key)
        for a, b in combinations(arms, 2)
        if a.study != b.study and len(scores.get(a.key, {}).keys() & scores.get(b.key, {}).keys()) > 1
    ]
    for pair in significance.compare(scores, pairs=pairs, overlap=overlap).pairs if pairs else ():
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
