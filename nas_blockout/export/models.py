"""Exported models: written whole or not at all, reloaded in a fresh process without this package, and compared.

The exported network takes images with values in [0, 1] and normalises them itself, so that preprocessing cannot be
lost. The sole importer of safetensors and of torch's ONNX exporter.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas_blockout.export import reloading
from nas_blockout.export.cards import ModelDescription, card

SCHEMA_VERSION = 1
BATCHES = (1, 7, 256)
BOUND = 1e-4
MAX_FILE_BYTES = 4 << 30
MANIFEST = "verification.json"
REFERENCE = "reference.safetensors"
_RELOAD_SECONDS = 300


class VerificationError(RuntimeError):
    """An exported model is not what its verification says; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found about an exported model.

    Args:
        ok: Whether every file is the one that was written and every form computes the recorded logits.
        findings: What is wrong, one sentence each; empty if nothing is.
        differences: Largest absolute difference of logits by form and batch size.
    """

    ok: bool
    findings: tuple[str, ...] = ()
    differences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Deployed(nn.Module):
    """A network that normalises its images itself.

    Args:
        network: Gives logits from normalised images; in eval mode.
        mean: Of each channel.
        std: Of each channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(batch, classes)``, of images in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of a model; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, part)
    part.replace(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read the parameters and buffers of a model, in place.

    Raises:
        VerificationError: The file is missing, is no safetensors file, or holds another network.
    """
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise VerificationError(f"{path} is missing: run the study again to train the model anew") from None
    except (SafetensorError, OSError) as error:
        raise VerificationError(f"{path} is no safetensors file ({error}); only such files are read") from None
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise VerificationError(f"{path} holds the weights of another network: {text}") from None


def export_model(model: nn.Module, folder: Path, description: ModelDescription) -> Verification:
    """Write a model in every form, reload each in a fresh process, compare, and only then put the folder in place.

    Args:
        model: A plain network in eval mode, on the CPU, that takes normalised images.
        folder: Where the files go; what was there is replaced at the end.
        description: What the card says and what belongs to the model.

    Returns:
        What the comparison found; it is written to ``verification.json`` too.

    Raises:
        VerificationError: A form does not compute what the model does; the folder is left as it was.
    """
    return export_models([(model, folder, description)])[0]


def export_models(models: Sequence[tuple[nn.Module, Path, ModelDescription]]) -> list[Verification]:
    """Export several models as `export_model` does, and reload all of them in one fresh process."""
    parts: list[Path] = []
    try:
        for model, folder, description in models:
            folder.parent.mkdir(parents=True, exist_ok=True)
            parts.append(Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")))
            _write_forms(model, parts[-1], description)
        reloaded = _reload(parts)
        found = []
        for part, (_, folder, description) in zip(parts, models, strict=True):
            _write_manifest(part, description, reloaded[part.name])
            found.append(verify(part, differences=reloaded[part.name]))
            if not found[-1].ok:
                text = "; ".join(found[-1].findings)
                raise VerificationError(f"{folder.name} is not the model that was trained: {text}")
        for part, (_, folder, _) in zip(parts, models, strict=True):
            part.chmod(0o755)
            _put_in_place(part, folder)
    finally:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    return found


def verify(folder: Path, *, differences: Mapping[str, Any] | None = None) -> Verification:
    """Verify an exported model.

    Args:
        folder: Of the model.
        differences: What reloading found, if that has just been done.
    """
    findings = _check_files(folder)
    if findings:  # nothing whose bytes have changed is ever loaded
        return Verification(False, tuple(findings))
    found = differences if differences is not None else _reload([folder])[folder.name]
    bound = json.loads((folder / MANIFEST).read_text())["bound"]
    findings = [
        f"{form}: cannot be used: {values}"
        if isinstance(values, str)
        else f"{form}: logits differ by {max(values.values()):.2e}, more than {bound:.0e}"
        for form, values in found.items()
        if isinstance(values, str) or not max(values.values()) <= bound
    ]
    return Verification(not findings, tuple(findings), found)


def verify_all(folders: Sequence[Path]) -> list[Verification]:
    """Verify several exported models; those whose files are unchanged are reloaded in one fresh process."""
    whole = [folder for folder in folders if not _check_files(folder)]
    reloaded = _reload(whole) if len({folder.name for folder in whole}) == len(whole) else {}
    return [verify(folder, differences=reloaded.get(folder.name)) for folder in folders]


@torch.no_grad()
def measure_latency(
    model: nn.Module, shape: tuple[int, int, int], *, batches: Sequence[int] = (1, 256), repeats: int = 15
) -> dict[int, float]:
    """Return the median milliseconds of one forward pass by batch size, on one thread.

    Args:
        model: In eval mode, on the CPU.
        shape: Channels, height and width of an image.
        batches: Images a pass.
        repeats: Timed passes, after three that are not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for batch in batches:
        images, seconds = torch.zeros(batch, *shape), []
        for _ in range(repeats + 3):
            began = time.perf_counter()
            model(images)
            seconds.append(time.perf_counter() - began)
        found[batch] = 1000 * median(seconds[3:])
    torch.set_num_threads(threads)
    return found


def _write_forms(model: nn.Module, folder: Path, description: ModelDescription) -> None:
    deployed = Deployed(model, description.mean, description.std).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (description.channels, description.height, description.width)
    images = torch.rand(max(BATCHES), *shape, generator=generator)
    with torch.no_grad():
        logits = torch.cat([deployed(part) for part in images.split(64)])
    save_file({"images": images, "logits": logits}, folder / REFERENCE)
    save_weights(model, folder / "weights.safetensors")
    _write_json(folder / "architecture.json", description.architecture or {})
    _write_json(folder / "preprocessing.json", description.preprocessing())
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=65536)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn of their own future
        program = torch.export.export(deployed, (images[:2],), dynamic_shapes=batch)
        torch.export.save(program, folder / "model.pt2")
        _write_onnx(program, folder / "model.onnx", images[:2], batch)
    (folder / "card.md").write_text(card(description), encoding="utf-8")


def _write_onnx(program: Any, path: Path, images: Tensor, batch: Mapping[str, Any]) -> None:
    try:
        import onnxscript  # noqa: F401  # torch needs it to write ONNX; without it there is no such form
    except ImportError:
        return
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.onnx.export(
        program,
        (images,),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )


def _write_manifest(folder: Path, description: ModelDescription, differences: Mapping[str, Any]) -> None:
    files = sorted(path.name for path in folder.iterdir())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": description.name,
        "bound": BOUND,
        "files": {name: _sha256(folder / name) for name in files},
        "forms": {
            form: {"max_abs_difference": values, "verified": not isinstance(values, str)}
            for form, values in differences.items()
        },
        "test_accuracy": description.test_accuracy,
        "test_images": description.test_images,
        "distillation": description.equality,
        "torch": str(torch.__version__),
    }
    _write_json(folder / MANIFEST, manifest)


def _check_files(folder: Path) -> list[str]:
    """Return what is wrong with the files of a folder, without loading any but the manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file() or manifest.stat().st_size > 1 << 20:
        return [f"{MANIFEST} is missing or too large: export the model again"]
    try:
        recorded = json.loads(manifest.read_text(encoding="utf-8"))
        hashes = dict(recorded["files"])
        version = recorded["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read ({error}): export the model again"]
    if version != SCHEMA_VERSION:
        return [f"{MANIFEST} has schema_version {version!r}, this program reads {SCHEMA_VERSION}"]
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    findings = [f"{name} is missing: export the model again" for name in sorted(hashes.keys() - present)]
    findings += [f"{name} does not belong here: remove it" for name in sorted(present - hashes.keys())]
    for name in sorted(hashes.keys() & present):
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            findings.append(f"{name} is no plain file of a reasonable size: export the model again")
        elif _sha256(path) != hashes[name]:
            findings.append(f"{name} has been changed since it was written: export the model again")
    missing = {"model.pt2", "weights.safetensors", "preprocessing.json", REFERENCE} - hashes.keys()
    return findings + [f"{MANIFEST} does not list {name}: export the model again" for name in sorted(missing)]


def _reload(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Load every form of some models in a fresh process that cannot import this package; return the differences."""
    if not folders:
        return {}
    script = Path(reloading.__file__).read_text(encoding="utf-8")
    arguments = [str(folder.absolute()) for folder in folders]
    done = subprocess.run(  # noqa: S603  # our own script, run by our own interpreter
        [sys.executable, "-I", "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=_RELOAD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        return {folder.name: {"process": " ".join(done.stderr.split())[-500:]} for folder in folders}
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _put_in_place(part: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
