"""The key `robustness` of a study file: corrupted test images for retrained models."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_blockout.data.corruptions import SEVERITIES


class Robustness(BaseModel):
    """Corrupted test images for retrained models, besides the clean ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    images: int = Field(
        1000, ge=1, le=100_000, description="Number of test images, balanced over the classes; all if there are fewer."
    )
    severities: list[int] = Field(
        list(SEVERITIES), min_length=1, description="Severities at which each of the 15 kinds of corruption is tested."
    )

    @field_validator("severities")
    @classmethod
    def _known(cls, severities: list[int]) -> list[int]:
        if severities != sorted(set(severities)) or not set(severities) <= set(SEVERITIES):
            raise ValueError("must be some of 1, 2, 3, 4, 5 in ascending order")
        return severities
