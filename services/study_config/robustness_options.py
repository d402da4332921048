"""The key `robustness` of a study file: on which corrupted test images retrained models are tested."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_blockout.data.corruptions import SEVERITIES


class Robustness(BaseModel):
    """On which corrupted test images retrained models are tested, beside the clean ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    images: int = Field(
        1000, ge=1, le=100_000, description="Test images, as many of each class; all if there are fewer."
    )
    severities: list[int] = Field(
        list(SEVERITIES), min_length=1, description="Severities of each of the 15 kinds for testing."
    )

    @field_validator("severities")
    @classmethod
    def _known(cls, severities: list[int]) -> list[int]:
        if severities != sorted(set(severities)) or not set(severities) <= set(SEVERITIES):
            raise ValueError("severities must be some of 1, 2, 3, 4, 5, rising")
        return severities
