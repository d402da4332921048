"""The smallest study, two arms of two trials each, and a folder of images, which tests store, submit or run."""

from pathlib import Path
from typing import Any

from PIL import Image

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


def image_folder(root: Path, classes: int = 3, images: int = 10) -> Path:
    for number in range(classes):
        folder = root / f"class-{number}"
        folder.mkdir(parents=True)
        for index in range(images):
            Image.new("RGB", (12, 10), (80 * number, 20 * index, 50)).save(folder / f"{index}.png")
    return root
