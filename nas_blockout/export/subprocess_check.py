"""Run by `export` in a fresh process: load every form of exported models and compare logits with the recorded ones.

This file imports nothing of this package and makes sure that nothing else does: it is what a stranger would do. It
reads jobs from standard input, a line of JSON each, ``{"folder": path, "files": {name: SHA-256}}``, and answers each
with a line of JSON: for each form the largest absolute differences and their bound, or a text with the reason why it
cannot be used.

`torch.export.load` is no safe reader: it unpickles sample inputs, constants and weights that ask for it, loads compiled
libraries and evaluates text of the archive. So nothing is loaded here but an archive written anew from entries that
hold no pickle, no library and no text but plain shapes and operators of ATen.
"""

import gc
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

BATCHES = (1, 7, 256)
BOUND = 1e-4  # of a logit's difference, times the largest logit where that is above 1
FORBIDDEN = ("nas_blockout", "search_spaces", "services")
REFERENCE = "reference.safetensors"
PREPROCESSING = "preprocessing.json"  # stands beside the forms and, under the same name, in each of them
WEIGHTS_SEAL = "weights.sha256"  # inside model.pt2
BATCH_NORM_EPSILON = 1e-5  # PyTorch's, which every normalization of ours has

_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    rf"|extra/{re.escape(PREPROCESSING)}|extra/{re.escape(WEIGHTS_SEAL)}"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!_(?!assert_tensor_metadata\.)|from_file)\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|getitem)"
)
_SHAPE = re.compile(
    r"((Symbol|Integer|Add|Mul|FloorDiv|Mod|Max|Min)\(|'[su]\d+'|(positive|integer|nonnegative)=True|\d{1,9}|[-(), ])+"
)
# Of networks that are built from stages: what lies in the body of a graph is called as in somebody's network.
_OPERATION = re.compile(r"(?!body\.)(.+)\.operations\.(\d+(?:_\d+)*)\.")
_DECIDING = 4  # numbers by which nodes are put in order
# Shapes of inputs and outputs; other types could be classes whose code would run
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


class _Forbidden(MetaPathFinder):
    """Makes our own packages impossible to import."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Refuse our own packages, leave all else to the next finder."""
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name}: an exported model must do without this package")


def cleaned(content: bytes) -> bytes:
    """Return the archive of an exported program, written anew from entries that can do nothing but compute.

    Raises:
        ValueError: It holds anything else; the message names it.
    """
    files = _entries(content)
    if files.get("data/sample_inputs/model.pt"):
        raise ValueError("it holds a pickle of sample inputs, and no pickle is ever loaded")
    for name in ("models/model.json", "data/weights/model_weights_config.json"):
        if name not in files:
            raise ValueError(f"it holds no {name}")
    for name in (name for name in files if name.endswith(".json")):
        document = json.loads(files[name])
        for key, value in _pairs(document):
            if key in _HARMLESS and not _HARMLESS[key](value):
                raise ValueError(f"{name} holds {key}={str(value)[:80]!r}, which is more than a computation of tensors")
        files[name] = json.dumps(document).encode()  # what was read is what will be read
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as archive:
        for name, value in files.items():
            archive.writestr(f"archive/{name}", value)
    return rewritten.getvalue()


def _entries(content: bytes) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its entries unpack to more than the file holds")
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if not _ENTRY.fullmatch(name) or name in files or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry {entry.filename[:80]!r} does not belong to a plain program")
            files[name] = archive.read(entry)
    return files


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of every object in a JSON document."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_plain_tree(text: Any) -> bool:
    """Whether the description of an operator's inputs or outputs is made of tuples, lists and dicts alone."""
    return all(key != "type" or kind in _TREES for key, kind in _pairs(json.loads(text)))


def _is_empty(value: Any) -> bool:
    return not value


_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "use_pickle": lambda value: value is False,
    "path_name": _matches(_PAYLOAD),
    "target": _matches(_OPERATOR),
    "expr_str": _matches(_SHAPE),
    "in_spec": _is_plain_tree,
    "out_spec": _is_plain_tree,
    "guards_code": _is_empty,
    "metadata": _is_empty,
    "treespec_namedtuple_fields": _is_empty,
    "as_operator": _is_empty,
    "as_custom_obj": _is_empty,
}


def load_program(content: bytes) -> Any:
    """Return an exported program; refuses what could do more than compute, as `cleaned` does."""
    import torch

    return torch.export.load(io.BytesIO(cleaned(content)))


def load_onnx(content: bytes) -> Callable[[Any], Any]:
    """Return an ONNX model as a function of a batch of images."""
    return _runner(_session(content))


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _runner(session: Any) -> Callable[[Any], Any]:
    import torch

    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _require_same(inside: str, beside: bytes) -> None:
    if inside != beside.decode():
        raise ValueError(f"its description of images and classes differs from {PREPROCESSING}")


def _differences(run: Callable[[Any], Any], images: Any, logits: Any) -> dict[str, float]:
    differences = {}
    for batch in BATCHES:
        outputs = run(images[:batch])
        if outputs.shape != logits[:batch].shape:
            raise ValueError(f"logits have the shape {tuple(outputs.shape)}, not {tuple(logits[:batch].shape)}")
        differences[str(batch)] = float((outputs - logits[:batch]).abs().max())
    return differences


def current_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a weights file or a program by their names in this version.

    The names of modules are those of tensors, and so part of a file format: version 1 spelled ``normalise``.
    """
    return {name.replace("normalise", "normalize"): value for name, value in tensors.items()}


def _weights(content: bytes, program: Callable[[], Any], seal: Callable[[], str]) -> dict[str, float]:
    """Compare the weights with those of the program, whose logits have been compared; they cannot be run alone.

    The program of a graph divides and joins operations over layers, so that its numbers cannot be told apart by layer.
    It holds the hash of the weights that it was made of, which had given the recorded logits when they were written.
    """
    from safetensors.torch import load

    weights, state = current_names(load(content)), current_names(program().state_dict)
    run = {name[8:]: value.detach() for name, value in state.items() if name.startswith("network.")}
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite")
    alike = weights.keys() == run.keys()
    if not alike and not _layers(weights) and not _layers(run):
        if seal() != hashlib.sha256(content).hexdigest():
            raise ValueError("it is not the file of weights that model.pt2 was made of")
        return {"tensors": 0.0}
    pairs = {name: (weights[name], run[name]) for name in run} if alike else _folded(weights, run)
    largest = 0.0
    for name, (value, other) in pairs.items():
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(other.shape)} as in model.pt2")
        if value.numel():
            largest = max(largest, float((value.double() - other.double()).abs().max()))  # also of booleans
    return {"tensors": largest}


def _folded(weights: Mapping[str, Any], exported: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return, by layer, what its weights become when normalization is folded into them, and what the program holds.

    The program may run the nodes of a layer as other operations than were trained, in another order, as sums of several
    products, and with zeros where they read or make nothing. They are the same nodes if each has the same bias and the
    same numbers other than zero.
    """
    trained, run = _layers(weights), _layers(exported)
    others = {name for name in exported if not _OPERATION.match(name)}
    if not run or trained.keys() != run.keys() or not others <= weights.keys():
        raise ValueError("it holds other tensors than model.pt2")
    pairs = {name: (weights[name], exported[name]) for name in others}
    for layer, operations in run.items():
        parts = [_folded_operation(weights, f"{layer}.operations.{number}") for number in trained[layer]]
        pairs[layer] = _rows(parts), _rows([_terms(exported, f"{layer}.operations.{number}") for number in operations])
        nodes, there = map(len, pairs[layer])
        if nodes != there:
            raise ValueError(f"{layer} has {nodes} nodes that are not zero, not {there} as in model.pt2")
    return pairs


def _layers(tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the operations of every layer that has some."""
    operations: dict[str, list[str]] = {}
    for name in sorted(tensors):
        if (match := _OPERATION.match(name)) and match[2] not in operations.setdefault(match[1], []):
            operations[match[1]].append(match[2])
    return operations


def _terms(tensors: Mapping[str, Any], operation: str) -> tuple[Any, Any]:
    """Return the weight of an operation that is run, that of a sum as one whose columns are those of all terms."""
    import torch

    if f"{operation}.weight" in tensors:
        return tensors[f"{operation}.weight"], tensors[f"{operation}.bias"]
    names = sorted(name for name in tensors if name.startswith(f"{operation}.terms.") and name.endswith(".weight"))
    return torch.cat([tensors[name].flatten(1) for name in names], 1), tensors[f"{operation}.terms.0.bias"]


def _rows(operations: Sequence[tuple[Any, Any]]) -> Any:
    """Return the nodes that can give anything but zero, each its bias and its numbers other than zero by size."""
    import torch
    from torch.nn.functional import pad

    parts = []
    for weight, bias in operations:
        numbers = weight.flatten(1)
        ordered = numbers.masked_fill(numbers == 0, torch.inf).sort(1).values
        kept = (numbers != 0).any(1) | (bias != 0)
        parts.append(torch.cat([bias[kept, None], ordered[kept]], 1))
    width = max(rows.shape[1] for rows in parts)
    rows = torch.cat([pad(part, (0, width - part.shape[1]), value=torch.inf) for part in parts])
    for column in reversed(range(min(_DECIDING, width))):
        rows = rows[rows[:, column].argsort(stable=True)]
    rows = rows[:, (rows != torch.inf).any(0)]
    return rows.masked_fill(rows == torch.inf, 0)


def _folded_operation(weights: Mapping[str, Any], operation: str) -> tuple[Any, Any]:
    weight, stage = weights[f"{operation}.weight"], operation.rpartition(".operations.")[0]
    bias = weights.get(f"{operation}.bias", weight.new_zeros(len(weight))).double()
    if f"{stage}.normalize.weight" not in weights:
        return weight, bias.to(weight.dtype)
    number = int(operation.rpartition(".")[2])
    start = sum(len(weights[f"{stage}.operations.{before}.weight"]) for before in range(number))
    norm = (f"{stage}.normalize.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    gain, shift, mean, variance = (weights[name][start : start + len(weight)].double() for name in norm)
    scale = gain / (variance + BATCH_NORM_EPSILON).sqrt()
    wide = weight.double() * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return wide.to(weight.dtype), ((bias - mean) * scale + shift).to(weight.dtype)


def _reference(content: bytes, preprocessing: bytes) -> tuple[Any, Any]:
    """Return the recorded images and logits; they must be enough, finite, and of the shape that was promised."""
    from safetensors.torch import load

    reference, promised = load(content), json.loads(preprocessing)
    images, logits = reference["images"], reference["logits"]
    shape = (max(BATCHES), promised["channels"], promised["height"], promised["width"])
    for name, actual, expected in (
        ("images", tuple(images.shape), shape),
        ("logits", tuple(logits.shape), (max(BATCHES), len(promised["class_names"]))),
    ):
        if actual != expected:
            raise ValueError(f"{name} have the shape {actual}, not {expected} as in {PREPROCESSING}")
    if not bool(images.isfinite().all() and logits.isfinite().all()):
        raise ValueError("a recorded number is not finite")
    return images, logits


def examine(folder: Path, files: Mapping[str, str]) -> dict[str, Any]:
    """Return, for each form of a model, its differences and their bound, or what is wrong with it.

    Args:
        folder: Of the model.
        files: SHA-256 of every file; a file is loaded from the very bytes that have it.
    """

    def content(name: str) -> bytes:
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise ValueError("it has been changed while it was read")
        return data

    try:
        beside = content(PREPROCESSING)
        images, logits = _reference(content(REFERENCE), beside)
    except Exception as error:  # noqa: BLE001  # any error of a library is a finding about the file
        return {REFERENCE: _error_text(error)}
    bound = BOUND * max(1.0, float(logits.abs().max()))
    # loaded once, for its logits and for the weights; an error is raised anew for each
    program = cache(lambda: load_program(content("model.pt2")))

    def of_program() -> dict[str, float]:
        differences = _differences(program().module(), images, logits)
        inside = _entries(content("model.pt2")).get(f"extra/{PREPROCESSING}", b"").decode()
        _require_same(inside, beside)
        return differences

    def seal() -> str:
        return _entries(content("model.pt2")).get(f"extra/{WEIGHTS_SEAL}", b"").decode()

    def of_onnx() -> dict[str, float]:
        session = _session(content("model.onnx"))
        _require_same(str(session.get_modelmeta().custom_metadata_map.get(PREPROCESSING, "")), beside)
        return _differences(_runner(session), images, logits)

    forms: Mapping[str, tuple[float, Callable[[], dict[str, float]]]] = {
        "model.pt2": (bound, of_program),
        "model.onnx": (bound, of_onnx),
        "weights.safetensors": (0.0, lambda: _weights(content("weights.safetensors"), program, seal)),
    }
    answer: dict[str, Any] = {}
    for form, (most, differences) in forms.items():
        if form in files:
            try:
                answer[form] = {"max_abs_difference": differences(), "bound": most}
            except Exception as error:  # noqa: BLE001  # as above
                answer[form] = _error_text(error)
    return answer


def _error_text(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed here: pip install {error.name}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    """Do the jobs of standard input; what libraries print goes to standard error, answers go to standard output."""
    # Answers go to a copy of standard output; whatever libraries print to it goes to standard error from here on.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.meta_path.insert(0, _Forbidden())
    gc.disable()  # until all is imported, by the first job: to look through it is a sixth of the time
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        task = json.loads(line)
        answer = examine(Path(task["folder"]), task["files"])
        assert not any(name.split(".")[0] in FORBIDDEN for name in sys.modules)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if not gc.isenabled():
            gc.freeze()
            gc.enable()


if __name__ == "__main__":
    main()
