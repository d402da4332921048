"""Exported models: written whole or not at all, reloaded in a fresh process without this package, and compared.

The exported network takes images with values in [0, 1] and normalizes them itself, so that preprocessing cannot be
lost. The sole importer of safetensors and of torch's exporters, apart from the process that reloads.
"""

import copy
import importlib.util
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.atomic_files import whole_file, whole_folder
from nas_blockout.export.cards import ModelDescription, card
from nas_blockout.export.latency import for_inference
from nas_blockout.export.model_dir import NETWORK, json_text, sha256, write_json
from nas_blockout.export.onnx_graph import onnx_program
from nas_blockout.export.prediction import ExportedModel
from nas_blockout.export.subprocess_check import BATCHES, PREPROCESSING, REFERENCE, WEIGHTS_SEAL, current_names
from nas_blockout.export.verification import (
    MANIFEST,
    SCHEMA_VERSION,
    Job,
    Verification,
    VerificationError,
    collect,
    fresh_process,
    judge,
    sealed,
    submit,
)
from nas_blockout.networks import Network, Runtime

WEIGHTS = "weights.safetensors"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_BATCH = "batch"
_FIRST_RUNTIME = {10: "1.18"}  # by version of ONNX's file format; 1.17.3 was tried and refuses it


class Deployed(nn.Module):
    """A network that normalizes its images itself.

    Args:
        network: Gives logits from normalized images; in eval mode.
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
        if torch.compiler.is_exporting():
            # Else a program would take bytes, 255 times as large as it expects, and give logits of them. ONNX refuses
            # such images by itself.
            torch.ops.aten._assert_tensor_metadata.default(images, dtype=torch.float32)
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of a model; the file appears whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_file(path) as part:
        save_file(tensors, part)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read the parameters and buffers of a model, in place.

    Raises:
        VerificationError: The file is missing, is no safetensors file, or holds another network; the model is as it
            was.
    """
    try:
        loaded = current_names(load_file(path))
    except FileNotFoundError:
        raise VerificationError(f"{path} is missing: run the study again to train the model anew") from None
    except (SafetensorError, OSError) as error:
        raise VerificationError(f"{path} is no safetensors file ({error}); only such files are read") from None
    _fill(model, loaded, path)


def load_exported_weights(model: nn.Module, exported: ExportedModel) -> None:
    """Read the weights of an exported model, in place, from the very bytes that were hashed.

    Raises:
        VerificationError: They are those of another network; the model is as it was.
    """
    name = "weights.safetensors"
    _fill(model, current_names(load(exported.content(name))), exported.folder / name)


def _fill(model: nn.Module, loaded: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | loaded.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (loaded, expected)]
        if shapes[0] != shapes[1]:
            there, here = (f"the shape {shape}" if shape is not None else "no such tensor" for shape in shapes)
            raise VerificationError(
                f"{path} holds the weights of another network: {name} has {there} in the file and {here} in the network"
            )
    model.load_state_dict(loaded)


def export_model(model: nn.Module, folder: Path, description: ModelDescription) -> Verification:
    """Write a model in every form, reload each in a fresh process, compare, and only then put the folder in place.

    ``model.pt2`` (torch.export) and ``model.onnx`` take any number of images in [0, 1] and give logits; they hold the
    text of ``preprocessing.json`` under that name, and no pickle, no source text and no path. ONNX is left out, with
    the reason recorded, where one of onnx, onnxscript and onnxruntime is not installed.

    Args:
        model: A network that takes normalized images, shape ``(batch, channels, height, width)``, and gives logits;
            exported as it is in eval mode, and left as it is.
        folder: Where the files go; what was there is replaced in one step at the end.
        description: Content of the card and metadata of the model.

    Returns:
        What the comparison found; it is written to ``verification.json`` too.

    Raises:
        ValueError: The model does not give one logit a class.
        VerificationError: A form does not compute what the model does, or the branched network did not compute what the
            network did that it was derived from; the folder is left as it was.
    """
    return export_models([(model, folder, description)])[0]


def export_models(
    models: Sequence[tuple[nn.Module, Path, ModelDescription]], *, meanwhile: Callable[[], None] = lambda: None
) -> list[Verification]:
    """Export several models as `export_model` does, and reload all of them in one fresh process.

    No folder is put in place before every model has been verified.

    Args:
        models: Each with its folder and description.
        meanwhile: Called once, while the fresh process still reloads and compares.
    """
    folders = [folder for _, folder, _ in models]
    if len(set(folders)) < len(folders):
        raise ValueError(f"models must be exported to different folders, got {sorted(map(str, folders))}")
    for _, folder, description in models:
        if finding := description.unproved():
            raise VerificationError(f"{folder.name} is not the network that was learned: {finding}")
    jobs: list[Job] = []
    with ExitStack() as parts:  # which take their places when it closes, if nothing was raised
        with fresh_process() as process:  # it imports torch while the forms are written
            for model, folder, description in models:
                part = parts.enter_context(whole_folder(folder))
                _write_forms(model, part, description)
                jobs.append(Job(part, {path.name: sha256(path) for path in sorted(part.iterdir())}))
                submit(jobs[-1], process)
            meanwhile()
            verifications = [judge(answer) for answer in collect(jobs, process)]
        for (_, folder, description), job, verification in zip(models, jobs, verifications, strict=True):
            if not verification.ok:
                findings = "; ".join(verification.findings)
                raise VerificationError(f"{folder.name} is not the model that was trained: {findings}")
            _write_manifest(job, description, verification)
    return verifications


def missing_for_onnx() -> str | None:
    """Return why ONNX cannot be written and verified here, or None."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}" if missing else None


def _write_forms(model: nn.Module, folder: Path, description: ModelDescription) -> None:
    deployed = Deployed(copy.deepcopy(model).cpu(), description.mean, description.std).eval()
    runs = {
        runtime: Deployed(
            for_inference(model, runtime=runtime, batch=description.batch), description.mean, description.std
        ).eval()
        for runtime in (get_args(Runtime) if _depends_on_runtime(model) else ("torch",))
    }
    shape = (description.channels, description.height, description.width)
    # Logits are recorded before anything is exported: they are what every form has to reproduce.
    images = _reference_images(shape)
    with torch.no_grad():
        logits = torch.cat([deployed(part) for part in images.split(64)])
    if logits.shape != (len(images), len(description.class_names)):
        raise ValueError(
            f"a model must give one logit a class, got the shape {tuple(logits.shape)} for {len(images)} images "
            f"and {len(description.class_names)} class names"
        )
    save_file({"images": images, "logits": logits}, folder / REFERENCE)
    save_weights(deployed.network, folder / WEIGHTS)
    _require_logits(deployed, folder / WEIGHTS, images, logits, name=description.name)
    write_json(folder / "architecture.json", description.architecture or {})
    if description.origin is not None:
        write_json(folder / NETWORK, description.origin)
    inside = {PREPROCESSING: json_text(description.preprocessing())}
    (folder / PREPROCESSING).write_text(inside[PREPROCESSING], encoding="utf-8")
    example = images[:2].clone()  # of more than one image, or its number would be frozen
    skipped = missing_for_onnx()
    with _quiet():
        program = _program(runs["torch"], example)
        seal = {WEIGHTS_SEAL: sha256(folder / WEIGHTS)}
        torch.export.save(program, folder / "model.pt2", extra_files=inside | seal)
        least = {"model.pt2": f"torch {version('torch').partition('+')[0]}"}
        if skipped is None:
            path = folder / "model.onnx"
            other = _program(runs["onnxruntime"], example) if "onnxruntime" in runs else program
            least[path.name] = _write_onnx(other, path, example, inside)
    (folder / "card.md").write_text(card(description, without_onnx=skipped, least=least), encoding="utf-8")


def _depends_on_runtime(model: nn.Module) -> bool:
    """Whether a network has a form of its own for each runtime; else one program serves all."""
    return isinstance(model, Network) and type(model).for_inference is not Network.for_inference


def _require_logits(deployed: nn.Module, path: Path, images: Tensor, logits: Tensor, *, name: str) -> None:
    """Require of a file of weights that a network which reads it gives the recorded logits.

    Raises:
        VerificationError: It gives others.
    """
    again = copy.deepcopy(deployed)
    with torch.no_grad():
        for value in again.network.parameters():  # type: ignore[union-attr]  # of Deployed
            value.fill_(torch.nan)  # so that what the file does not hold cannot be overlooked
    load_weights(again.network, path)  # type: ignore[arg-type]  # as above
    with torch.no_grad():
        if not torch.equal(torch.cat([again(part) for part in images.split(64)]), logits):
            raise VerificationError(f"{name} is not the model that was trained: with {path.name} its logits differ")


def _reference_images(shape: tuple[int, int, int]) -> Tensor:
    """Return images of nobody's data, from smooth to noisy: a network that white noise drives dead answers others."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = shape
    number = max(BATCHES)
    smooth = torch.rand(number, channels, 1 + height // 8, 1 + width // 8, generator=generator)
    smooth = F.interpolate(smooth, (height, width), mode="bilinear")
    share = torch.rand(number, 1, 1, 1, generator=generator)
    return share * torch.rand(number, *shape, generator=generator) + (1 - share) * smooth


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return a network as a program, without example inputs, which would be a pickle, and source text with paths."""
    program = torch.export.export(network, (example,), dynamic_shapes={"images": {0: torch.export.Dim(_BATCH, min=1)}})
    program._example_inputs = None
    for node in program.graph.nodes:
        for key in set(node.meta) - {"val"}:
            del node.meta[key]
    return program


def _write_onnx(program: torch.export.ExportedProgram, path: Path, images: Tensor, inside: Mapping[str, str]) -> str:
    """Write a program as ONNX; return the oldest runtime that is known to read it."""
    exported = onnx_program(program, images, inputs=["images"], outputs=["logits"])
    graph = exported.model.graph
    graph.metadata_props.clear()
    nodes = list(graph.all_nodes())
    for node in nodes:
        node.metadata_props.clear()
    # Metadata holds source text with paths of this machine; an axis of any size gets one name in all forms.
    for value in (*graph.inputs, *graph.initializers.values(), *(output for node in nodes for output in node.outputs)):
        value.metadata_props.clear()
        shape = value.shape
        for axis, size in enumerate(shape or ()):
            if shape is not None and not isinstance(size, int):
                shape[axis] = _BATCH
    exported.model.metadata_props.clear()
    exported.model.metadata_props.update(inside)
    exported.save(path, external_data=False)
    written = exported.model.ir_version
    return f"onnxruntime {_FIRST_RUNTIME.get(written or 0, version('onnxruntime'))}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporters, which warn of their own future, log what they do, and note where it was asked for.

    For each operation they would collect and format the lines of source text that led to it, a tenth of the time of an
    export, and no form may hold them.
    """
    tracing, noting = torch.fx.config, "do_not_emit_stack_traces"
    silent = getattr(tracing, noting, None)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if silent is not None:  # else torch is older than the setting
            setattr(tracing, noting, True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if silent is not None:
            setattr(tracing, noting, silent)


def _write_manifest(job: Job, description: ModelDescription, verification: Verification) -> None:
    skipped = missing_for_onnx()
    manifest: Mapping[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": description.name,
        "files": dict(job.files),
        "forms": {
            form: {
                "max_abs_difference": dict(differences),
                "bound": verification.bounds[form],
                "verified": verification.ok,
            }
            for form, differences in verification.differences.items()
        },
        "skipped": {"model.onnx": skipped} if skipped else {},
        "batch": description.batch,
        "test_accuracy": description.test_accuracy,
        "test_images": description.test_images,
        "test_balanced_accuracy": description.test_balanced_accuracy,
        "distillation": description.equality,
        "structure": description.structure.to_json() if description.structure else None,
        "branches": description.branches,
        "memberships": description.memberships,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "safetensors", *(() if skipped else ONNX_PACKAGES))},
        },
    }
    (job.folder / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
