"""Arrays of a program in a file: named by the hash of its content, written once, whole or not at all, and checked.

The file holds the images and labels of each split as safetensors, and in its header the hash of each of them. The name
is the hash of the header: whoever has the name knows every byte.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas_blockout.atomic_files import whole_file
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataCorrupt, DataMissing, DataUnsuitable
from nas_blockout.data.splits import Collection, require_classes
from nas_blockout.data.subsets import stratified
from nas_blockout.data.tensor_dataset import Labeled

CARVED_SHARE = 0.2
REMEDY = "give them as nas_blockout.ArrayData to a study in Python, which writes them"
_HASH_CHARACTERS = 32
_KEY = "arrays"
_SPLITS = ("train", "validation", "test")


def described(parts: Mapping[str, Labeled], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return what a file of arrays holds as plain JSON types: names of the classes; type, shape and hash of tensors."""
    tensors = {
        f"{split}.{kind}": _described(getattr(part, kind))
        for split, part in parts.items()
        for kind in ("images", "labels")
    }
    return {"schema_version": 1, "class_names": list(class_names), "tensors": tensors}


def content_of(description: Mapping[str, Any]) -> str:
    """Return the hash by which a file of arrays is known."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:_HASH_CHARACTERS]


def write(parts: Mapping[str, Labeled], description: Mapping[str, Any], folder: Path) -> Path:
    """Write a file of arrays unless it is there, whole or not at all; return it.

    Args:
        parts: Images and labels of each split.
        description: As of `described`.
        folder: Where the file goes.
    """
    path = _file(folder, content_of(description))
    if not path.exists():  # of this name there is only one content, whoever writes it
        tensors = {
            f"{split}.{kind}": getattr(part, kind).contiguous()
            for split, part in parts.items()
            for kind in ("images", "labels")
        }
        with whole_file(path) as part:
            save_file(tensors, part, metadata={_KEY: json.dumps(description)})
    return path


def read(settings: DataSettings, root: Path | None) -> Collection:
    """Read the images and labels of a file of arrays; those of the test only when they are asked for.

    Args:
        settings: With the hash of the content.
        root: The data root, in which ``arrays/`` has the file where the settings name no folder.

    Raises:
        DataMissing: The file is not there.
        DataCorrupt: It is not the file that was written.
    """
    path = _file(_folder(settings, root), str(settings.content))
    description = _header(path, settings)
    given = [split for split in _SPLITS if f"{split}.images" in description["tensors"]]
    parts = {split: _part(path, description, split) for split in given if split != "test"}
    load_test = partial(_part, path, description, "test") if "test" in given else None
    names = tuple(description["class_names"])
    return carved(parts, names, load_test=load_test, split_seed=settings.split_seed, origin=str(path.parent))


def dimensions_of(settings: DataSettings) -> tuple[tuple[int, int, int], int, int | None] | None:
    """Return shape, classes and training images of a file of arrays; None where it is not found in a folder of its own.

    The number of images is None where other splits are taken from those to train on.
    """
    path = _file(Path(settings.folder), str(settings.content)) if settings.folder is not None else None
    if path is None or not path.exists():
        return None
    description = _header(path, settings)
    count, channels, height, width = description["tensors"]["train.images"]["shape"]
    whole = len(description["tensors"]) == 2 * len(_SPLITS)
    return (channels, height, width), len(description["class_names"]), count if whole else None


def carved(
    parts: Mapping[str, Labeled],
    class_names: tuple[str, ...],
    *,
    load_test: Callable[[], Labeled] | None,
    split_seed: int,
    origin: str = "",
    needs_test: bool = True,
) -> Collection:
    """Return all three splits; of what was not given, each is a fifth of the images to train on, class by class.

    Args:
        parts: Images and labels of the splits that were given.
        class_names: In the order of the numbers of the classes.
        load_test: Reads the test images where they are not among the parts and were given.
        split_seed: Seed of the division.
        origin: Folder of the file.
        needs_test: Whether test images are taken from those to train on where none were given.

    Raises:
        DataUnsuitable: A class has too few images to be divided.
    """
    given = {*parts, *(["test"] if load_test is not None else [])}
    missing = [split for split in _SPLITS if split not in given and (needs_test or split != "test")]
    divided = dict(parts)
    if missing:
        train = parts["train"]
        shares = (1 - CARVED_SHARE * len(missing), *[CARVED_SHARE] * (len(missing) - 1))
        indices = stratified(train.labels, shares, seed=split_seed)
        for split, index in zip(("train", *missing), indices, strict=True):
            divided[split] = train.at(index)
            _require_enough(divided[split], class_names, split)
    count = sum(map(len, divided.values()))
    told = f"{len(class_names)} classes; " + ", ".join(f"{len(part)} {split}" for split, part in divided.items())
    taken = f"; {' and '.join(missing)} taken from the images to train on" if missing else ""
    test = divided.pop("test", None)
    return Collection(
        train=divided["train"],
        validation=divided["validation"],
        load_test=load_test or partial(_given, test),
        class_names=class_names,
        origin=origin,
        notes=(f"arrays: {count} images of {told}{taken}",),
    )


def _given(part: Labeled | None) -> Labeled:
    if part is None:
        raise DataMissing(
            "there are no test images: none were given, and none are taken where only one network is trained"
        )
    return part


def _require_enough(part: Labeled, class_names: tuple[str, ...], split: str) -> None:
    try:
        require_classes(part.labels, class_names, split=split)
    except DataUnsuitable as error:
        raise DataUnsuitable(
            f"{error}; {split} is taken from the images to train on, of which a class has too few"
        ) from None


def _described(tensor: Tensor) -> dict[str, Any]:
    content = hashlib.sha256(tensor.contiguous().numpy().data.cast("B")).hexdigest()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "sha256": content}


def _folder(settings: DataSettings, root: Path | None) -> Path:
    if settings.folder is not None:
        return Path(settings.folder)
    if root is None:
        raise DataMissing(f"arrays need a folder or a data root (NAS_BLOCKOUT_DATA), there is neither; {REMEDY}")
    return root / "arrays"


def _file(folder: Path, content: str) -> Path:
    return folder / f"{content}.safetensors"


def _header(path: Path, settings: DataSettings) -> dict[str, Any]:
    if not path.exists():
        raise DataMissing(f"arrays must have the file {path}, which is not there; {REMEDY}")
    try:
        with safe_open(path, framework="pt") as file:
            description: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
        intact = content_of(description) == settings.content
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        intact = False
    if not intact:
        raise DataCorrupt(f"{path} is not the file that was written: delete it, and {REMEDY}")
    return description


def _part(path: Path, description: Mapping[str, Any], split: str) -> Labeled:
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for kind in ("images", "labels"):
                tensors[kind] = file.get_tensor(f"{split}.{kind}")
    except (SafetensorError, OSError) as error:
        raise DataCorrupt(f"{path} is not the file that was written ({error}): delete it, and {REMEDY}") from None
    for kind, tensor in tensors.items():
        if _described(tensor) != description["tensors"][f"{split}.{kind}"]:
            raise DataCorrupt(f"{path} is not the file that was written: {split} has changed. Delete it, and {REMEDY}")
    return Labeled(tensors["images"], tensors["labels"])
