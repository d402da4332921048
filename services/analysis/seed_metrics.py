"""Shares over seeds and their paired differences, as comparison.json has them."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from nas_blockout.statistics import significance
from nas_blockout.statistics.recalls import balanced_accuracy, recalls, wilson
from services.trial_record import Trial

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """A part of comparison.json: no key but those that are declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OverSeeds(Strict):
    """A share in [0, 1] over seeds; ``std`` and ``ci95`` are null where the seeds cannot give them."""

    mean: Share
    std: Amount | None
    ci95: tuple[Share, Share] | None
    per_seed: dict[str, Share] = Field(min_length=1)

    @classmethod
    def of(cls, per_seed: Mapping[int, float], *, overlap: float = 0.0) -> Self:
        """Summarize the shares of all seeds, which overlap as far as `significance.inflation` says."""
        summary = significance.summary(per_seed, bounds=(0, 1), overlap=overlap)
        named = {str(seed): value for seed, value in per_seed.items()}
        return cls(mean=summary.mean, std=summary.std, ci95=summary.ci95, per_seed=named)

    @property
    def by_seed(self) -> dict[int, float]:
        """The share by seed, as numbers."""
        return {int(seed): value for seed, value in self.per_seed.items()}


class Accuracy(OverSeeds):
    """Accuracy in [0, 1] over seeds; ``std`` and ``ci95`` are null where the seeds cannot give them."""


class ClassResult(Strict):
    """Accuracy of an arm on the test images of one class: ``ci95`` is Wilson's, for as many images as the class has."""

    images: Count
    accuracy: OverSeeds | None = Field(description="Share of its images that are right, over seeds.")
    ci95: tuple[Share, Share] | None

    @classmethod
    def of(cls, images: int, per_seed: Mapping[int, float], *, overlap: float = 0.0) -> Self:
        """Summarize the accuracies of all seeds; without images there are none."""
        if not images:
            return cls(images=0, accuracy=None, ci95=None)
        accuracy = OverSeeds.of(per_seed, overlap=overlap)
        # Seeds are tested on the same images: they do not make the class larger than it is.
        return cls(images=images, accuracy=accuracy, ci95=wilson(accuracy.mean, images))


class PairResult(Strict):
    """Accuracy of ``a`` minus that of ``b`` on shared seeds; ``ci95`` is uncorrected, ``p_holm`` decides."""

    a: str
    b: str
    difference: FiniteFloat
    ci95: tuple[FiniteFloat, FiniteFloat] | None
    seeds: Count
    p: Share
    p_permutation: Share | None = Field(description="Of flipped signs; null over folds, whose signs are not free.")
    p_holm: Share
    smallest_effect: Amount | None
    verdict: significance.Outcome

    @classmethod
    def of(cls, pair: significance.Pair) -> Self:
        """Return a tested pair as it is written."""
        return cls(
            a=pair.a,
            b=pair.b,
            difference=pair.test.difference,
            ci95=pair.test.ci95,
            seeds=pair.test.n,
            p=pair.test.p_value,
            p_permutation=pair.test.p_permutation,
            p_holm=pair.p_holm,
            smallest_effect=pair.smallest_effect,
            verdict=pair.verdict,
        )


def balanced_of(models: Mapping[int, Trial], key: str, *, overlap: float = 0.0) -> Accuracy | None:
    """Return a balanced accuracy; models from before it was recorded have that of the test in their confusions."""
    values = {
        seed: balanced_accuracy(trial.outcome["confusion"])
        if trial.outcome.get(key) is None and key.startswith("test") and trial.outcome.get("confusion")
        else trial.outcome.get(key)
        for seed, trial in models.items()
    }
    known = {seed: float(value) for seed, value in values.items() if value is not None}
    return Accuracy.of(known, overlap=overlap) if known and len(known) == len(models) else None


def classes_of(models: Mapping[int, Trial], *, overlap: float = 0.0) -> list[ClassResult] | None:
    """Return the test accuracy of every class; None if confusions were not recorded, or differ in their images."""
    found = {seed: trial.outcome.get("confusion") for seed, trial in models.items()}
    confusions = {seed: confusion for seed, confusion in found.items() if confusion}
    images = {tuple(map(sum, confusion)) for confusion in confusions.values()}
    if len(images) != 1 or len(confusions) < len(models):
        return None
    by_seed = {seed: recalls(confusion) for seed, confusion in confusions.items()}
    return [
        ClassResult.of(
            count,
            {seed: share for seed, each in by_seed.items() if (share := each[label]) is not None},
            overlap=overlap,
        )
        for label, count in enumerate(images.pop())
    ]
