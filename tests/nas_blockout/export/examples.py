"""A dense and a branched network, their description, and exported folders of them that somebody has tampered with."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.inception import Inception, InceptionSettings
from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.export import MANIFEST, ModelDescription
from nas_blockout.export.verification import sealed
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings

STAGES = stages(ConvNetSettings((4, 6), (8,)), (1, 8, 8), 5)
BRANCHED = Architecture(
    2,
    (
        Layer("features", (Group((0,), 2), Group((1,), 3), Group((0, 1), 1))),
        Layer("hidden", (Group((0,), 3), Group((1,), 4))),
        Layer("classes", (Group((0,), 3, (1, 2, 4)), Group((1,), 2, (0, 3)))),
    ),
)
CONSTANT = Architecture(
    2,
    (
        Layer("conv1", (Group((0,), 4),)),
        Layer("features", (Group((0,), 3), Group((0, 1), 1), Group((1,), 2, constant=True))),
        Layer("hidden", (Group((0,), 3), Group((1,), 4))),
        Layer("classes", (Group((), 1, (2,), constant=True), Group((0,), 2, (1, 4)), Group((1,), 2, (0, 3)))),
    ),
)
"""With nodes that read nothing, one of them a class."""
MEAN, STD = 0.3, 0.4


def network(*, branched: bool, architecture: Architecture = BRANCHED) -> BranchedNetwork:
    """A small network with running statistics that matter; its classes do not stand in memory in their order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = BranchedNetwork(
            STAGES, architecture if branched else dense_of(STAGES), channels=1, normalize_logits=branched
        )
        for name, buffer in found.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.2, 0.2)
            if name.endswith("running_var"):
                buffer.uniform_(0.05, 0.2)
        for name, parameter in found.named_parameters():
            if name.endswith("normalize.bias"):
                nn.init.uniform_(parameter, 0, 1)  # or most nodes of so small a network are dead
    return found.eval()


def images(batch: int) -> torch.Tensor:
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))


DESCRIPTION = ModelDescription(
    name="branched",
    study="example",
    question="does it work?",
    data="digits",
    train_images=100,
    class_names=("a", "b", "c", "d", "e"),
    channels=1,
    height=8,
    width=8,
    mean=(MEAN,),
    std=(STD,),
    parameters=100,
    macs=1000,
    seed=0,
    test_accuracy=0.9,
    test_images=540,
    accuracy="90.00% on average, 95% interval 89.00% to 91.00%, 5 seeds",
    verdict="No difference shown.",
    spent="1,000 sample passes",
    architecture=BRANCHED.to_json(),
    equality={
        "float64": {"max_abs_difference": 1e-15, "bound": 1e-10, "spread": 3.25},
        "raw_float64": {"max_abs_difference": 2e-15, "bound": 1e-10},
    },
)


PROBABILITIES = {
    "temperature": 2.5,
    "calibration": None,
    "novelty": {
        "energy": 1.65,
        "center": [0.5, 0.3, 0.3],
        "precision": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        "distance": 0.2,
        "quantile": 0.01,
        "images": 449,
    },
}
"""Of the dense model; about half of the images of `images` lie below the least energy, none is too far."""


COLORED = replace(
    DESCRIPTION, channels=3, height=16, width=16, mean=(0.5,) * 3, std=(0.25,) * 3, architecture=None, equality=None
)


def unbranched() -> dict[str, nn.Module]:
    """Small networks that are not built from stages, for the images of `COLORED`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        residual = ResNet(ResNetSettings(depth=8, width=0.25), (3, 16, 16), 5)
        return {
            "blockdrop": BlockDrop(residual, BlockDropSettings(policy_widths=(4,)), shape=(3, 16, 16)).eval(),
            "first-block": BlockDrop(
                residual, BlockDropSettings(policy="first", kept_blocks=1), shape=(3, 16, 16)
            ).eval(),
            "resnet": ResNet(ResNetSettings(depth=8, width=0.25), (3, 16, 16), 5).eval(),
            "inception": Inception(InceptionSettings(width=0.05), (3, 16, 16), 5).eval(),
        }


def rehashed(folder: Path, *names: str) -> None:
    """Make the manifest agree with changed files, as somebody would who knows how."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in names:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(sealed(manifest))


def with_names_of_version_1(path: Path) -> None:
    """Give the tensors of a weights file the names that the release before this one wrote."""
    tensors = {name.replace("normalize", "normalise"): value for name, value in load_file(path).items()}
    assert any("normalise" in name for name in tensors)
    save_file(tensors, path)


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], *, compression: int = zipfile.ZIP_STORED) -> None:
    """Change the entries of a program's archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)


def edit(path: Path, entry: str, change: Callable[[Any], None]) -> None:
    """Change one JSON document of a program's archive."""

    def changed(entries: dict[str, bytes]) -> None:
        document = json.loads(entries[entry])
        change(document)
        entries[entry] = json.dumps(document).encode()

    rewrite(path, changed)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickled_sample_inputs(path: Path, mark: Path) -> None:
    rewrite(path, lambda entries: entries.update({"data/sample_inputs/model.pt": saved((Hostile(mark),))}))


def pickled_weight(path: Path, mark: Path) -> None:
    def ask(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    rewrite(path, lambda entries: entries.update({"data/weights/weight_0": saved(Hostile(mark))}))
    edit(path, "data/weights/model_weights_config.json", ask)


def pickled_constant(path: Path, mark: Path) -> None:
    constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    rewrite(path, lambda entries: entries.update({"data/constants/opaque_obj_0": pickle.dumps(Hostile(mark))}))
    edit(path, "data/constants/model_constants_config.json", lambda config: config["config"].update(x=constant))


def code_in_a_shape(path: Path, mark: Path) -> None:
    def replace(document: Any) -> None:
        for value in document.values() if isinstance(document, dict) else document:
            if isinstance(value, dict | list):
                replace(value)
        if isinstance(document, dict) and "expr_str" in document:
            document["expr_str"] = f"__import__('os').mkdir({str(mark)!r}) or 1"

    edit(path, "models/model.json", replace)


# Archives that run the code of whoever wrote them as soon as `torch.export.load` reads them.
RUNS_CODE: dict[str, Callable[[Path, Path], None]] = {
    found.__name__: found for found in (pickled_sample_inputs, pickled_weight, pickled_constant, code_in_a_shape)
}
