"""The smallest study: two arms of two trials each, which tests store, submit or run."""

from typing import Any

TINY: dict[str, Any] = {
    "schema_version": 2,
    "name": "tiny",
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 2, "batch_size": 16},
    "budget": {"sample_passes": 402},
    "retrain": {"seeds": [0, 1]},
    "arms": {"dense": {}, "dropout": {"method": {"name": "dropout"}}},
}
