"""Accuracy on corrupted test images, as comparison.json has it."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field

from nas_blockout.data.corruptions import mean_corruption_error
from nas_blockout.statistics import significance
from services.analysis.seed_metrics import Amount, Count, OverSeeds, PairResult, Share, Strict

BASELINE = "dense"
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # `result["robustness"]` of a model, by arm and seed


class ArmRobustness(Strict):
    """One contestant on corrupted images; errors are means over seeds, in [0, 1]."""

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
    """All contestants on corrupted images; the pairs are of accuracy, one minus the mean corruption error."""

    images: Count
    severities: list[int]
    baseline: str | None = Field(description="The arm that `relative` is relative to.")
    arms: dict[str, ArmRobustness]
    pairs: list[PairResult]

    @classmethod
    def of(cls, results: Results, *, pairs: Sequence[tuple[str, str]]) -> Self | None:
        """Compare arms on corrupted images; None if no model was tested on any.

        Args:
            results: ``result["robustness"]`` of the retrained models; arms without any are left out.
            pairs: The tested family, with Holm's correction; pairs that share no seed are left out.
        """
        known = {arm: dict(models) for arm, models in results.items() if models}
        if not known:
            return None
        any_result = next(result for models in known.values() for result in models.values())
        errors = {arm: _mean(models) for arm, models in known.items()}
        baseline = BASELINE if BASELINE in known else None
        scores = {arm: {seed: 1 - error_of(found) for seed, found in models.items()} for arm, models in known.items()}
        tested = [(a, b) for a, b in pairs if a in scores and b in scores and scores[a].keys() & scores[b].keys()]
        return cls(
            images=any_result["images"],
            severities=any_result["severities"],
            baseline=baseline,
            arms={arm: _arm(models, errors[arm], errors.get(baseline or "")) for arm, models in known.items()},
            pairs=[PairResult.of(pair) for pair in significance.compare(scores, pairs=tested).pairs],
        )


def error_of(found: Mapping[str, Any]) -> float:
    """Return the mean corruption error of one tested model, in [0, 1]."""
    return mean_corruption_error(found["errors"])


def _arm(
    models: Mapping[int, Mapping[str, Any]], errors: dict[str, list[float]], baseline: dict[str, list[float]] | None
) -> ArmRobustness:
    return ArmRobustness(
        clean_error=sum(found["clean_error"] for found in models.values()) / len(models),
        corruption_error=OverSeeds.of({seed: error_of(found) for seed, found in models.items()}),
        relative=_relative(errors, baseline),
        errors=errors,
        seconds=sum(found["making_seconds"] + found["seconds"] for found in models.values()),
    )


def _mean(models: Mapping[int, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the mean over models of the error by kind and severity."""
    tables = [found["errors"] for found in models.values()]
    return {
        kind: [sum(each) / len(tables) for each in zip(*(table[kind] for table in tables), strict=True)]
        for kind in tables[0]
    }


def _relative(errors: dict[str, list[float]], baseline: dict[str, list[float]] | None) -> float | None:
    if baseline is None or not all(map(sum, baseline.values())):  # a share of zero is undefined
        return None
    return mean_corruption_error(errors, baseline)
