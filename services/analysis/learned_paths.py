"""Which blocks of their networks the retrained models of an arm keep, and on how many paths."""

from collections.abc import Mapping

from pydantic import Field, FiniteFloat

from nas_blockout.serialization import count_of
from services.analysis.seed_metrics import Count, Strict
from services.trial_record import Trial


class ArmPaths(Strict):
    """The paths of test images through the networks of an arm that skips blocks."""

    blocks: Count = Field(description="Blocks of the network.")
    kept: FiniteFloat = Field(description="Blocks that an image keeps, mean over images and seeds.")
    distinct_per_seed: dict[str, Count] = Field(description="By seed the number of distinct paths.")

    @property
    def summary(self) -> str:
        """Blocks and paths in a few words."""
        *most, last = (str(number) for number in self.distinct_per_seed.values())
        counts = f"{', '.join(most)} and {last}" if most else last
        return f"keeps {self.kept:.2f} of {self.blocks} blocks on average, on {counts} distinct paths"

    @property
    def unread(self) -> str | None:
        """That all images take one path, and in how many seeds; None if that is so in less than half of the seeds."""
        seeds = len(self.distinct_per_seed)
        alone = sum(number == 1 for number in self.distinct_per_seed.values())
        return f"takes one path for all images ({alone} of {count_of(seeds, 'seed')})" if 2 * alone > seeds else None


def arm_paths(models: Mapping[int, Trial]) -> ArmPaths | None:
    """Return the paths of an arm, or None if none of its models recorded any.

    Args:
        models: Its retrained trials by seed.
    """
    recorded = {seed: found for seed, trial in models.items() if (found := trial.outcome.get("blocks"))}
    if not recorded:
        return None
    kept = [
        sum(sum(found["paths"][path]) for path in found["path_of"]) / len(found["path_of"])
        for found in recorded.values()
    ]
    return ArmPaths(
        blocks=len(next(iter(recorded.values()))["blocks"]),
        kept=sum(kept) / len(kept),
        distinct_per_seed={str(seed): len(found["paths"]) for seed, found in recorded.items()},
    )
