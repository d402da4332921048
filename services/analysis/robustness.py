"""Accuracy on corrupted test images, as stored in comparison.json."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field

from nas_blockout.data.corruptions import mean_corruption_error
from nas_blockout.statistics import significance
from services.analysis.seed_metrics import Amount, Count, OverSeeds, PairResult, Share, Strict

BASELINE = "dense"
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # `result["robustness"]` of a model, by arm and seed


class ArmRobustness(Strict):
    """One arm on corrupted images; errors are means over seeds, in [0, 1]."""

    clean_error: Share = Field(description="On the same images, not corrupted.")
    corruption_error: OverSeeds = Field(description="Mean over kinds and severities.")
    relative: Amount | None = Field(description="Mean over kinds of the error as a share of the baseline's.")
    errors: dict[str, list[Share]] = Field(description="By kind, at each severity.")
    seconds: Amount = Field(description="What corrupting and testing took, over all seeds; charged to no budget.")

    @property
    def by_kind(self) -> dict[str, float]:
        """Mean error over severities, by kind."""
        return {kind: sum(values) / len(values) for kind, values in self.errors.items()}


class RobustnessResult(Strict):
    """All arms on corrupted images; pairs compare accuracy: one minus the mean corruption error."""

    images: Count
    severities: list[int]
    baseline: str | None = Field(description="The arm that `relative` is relative to.")
    arms: dict[str, ArmRobustness]
    pairs: list[PairResult]

    @classmethod
    def of(cls, results: Results, *, pairs: Sequence[tuple[str, str]], overlap: float = 0.0) -> Self | None:
        """Compare arms on corrupted images; None if no model was tested on any.

        Args:
            results: ``result["robustness"]`` of the retrained models; arms without any are left out.
            pairs: The tested family, with Holm's correction; pairs that share no seed are left out.
            overlap: Of the trainings behind the seeds, as in `significance.inflation`.
        """
        tested = {arm: dict(models) for arm, models in results.items() if models}
        if not tested:
            return None
        # All models of a study are tested on the same images, so any of them tells their number.
        any_result = next(result for models in tested.values() for result in models.values())
        errors = {arm: _mean(models) for arm, models in tested.items()}
        baseline = BASELINE if BASELINE in tested else None
        scores = {
            arm: {seed: 1 - error_of(result) for seed, result in models.items()} for arm, models in tested.items()
        }
        comparable = [(a, b) for a, b in pairs if a in scores and b in scores and scores[a].keys() & scores[b].keys()]
        return cls(
            images=any_result["images"],
            severities=any_result["severities"],
            baseline=baseline,
            arms={
                arm: _arm(models, errors[arm], errors.get(baseline or ""), overlap=overlap)
                for arm, models in tested.items()
            },
            pairs=[
                PairResult.of(pair) for pair in significance.compare(scores, pairs=comparable, overlap=overlap).pairs
            ],
        )


def error_of(result: Mapping[str, Any]) -> float:
    """Return the mean corruption error of one tested model, in [0, 1]."""
    return mean_corruption_error(result["errors"])


def _arm(
    models: Mapping[int, Mapping[str, Any]],
    errors: dict[str, list[float]],
    baseline: dict[str, list[float]] | None,
    *,
    overlap: float,
) -> ArmRobustness:
    return ArmRobustness(
        clean_error=sum(result["clean_error"] for result in models.values()) / len(models),
        corruption_error=OverSeeds.of({seed: error_of(result) for seed, result in models.items()}, overlap=overlap),
        relative=_relative(errors, baseline),
        errors=errors,
        seconds=sum(result["making_seconds"] + result["seconds"] for result in models.values()),
    )


def _mean(models: Mapping[int, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the mean over models of the error by kind and severity."""
    tables = [result["errors"] for result in models.values()]
    return {
        kind: [sum(errors) / len(tables) for errors in zip(*(table[kind] for table in tables), strict=True)]
        for kind in tables[0]
    }


def _relative(errors: dict[str, list[float]], baseline: dict[str, list[float]] | None) -> float | None:
    if baseline is None or not all(map(sum, baseline.values())):  # a share of zero is undefined
        return None
    return mean_corruption_error(errors, baseline)
