"""Run by `export` in a fresh process: load every form of exported models and compare logits with the recorded ones.

This file imports nothing of this package and makes sure that nothing else does: it is what a stranger would do. It
prints one line of JSON, by folder name: for each form the largest absolute difference by batch size, or a text that
says why it cannot be used.
"""

import json
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

BATCHES = (1, 7, 256)
FORBIDDEN = ("nas_blockout", "search_spaces", "services")


class _Forbidden(MetaPathFinder):
    """Makes our own packages impossible to import."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Refuse our own packages, leave all else to the next finder."""
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name}: an exported model must do without this package")


def _pt2(folder: Path) -> Callable[[Any], Any]:
    import torch

    model = torch.export.load(str(folder / "model.pt2")).module()

    def run(images: Any) -> Any:
        with torch.no_grad():
            return model(images)

    return run


def _onnx(folder: Path) -> Callable[[Any], Any]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _differences(run: Callable[[Any], Any], images: Any, logits: Any) -> dict[str, float]:
    found = {}
    for batch in BATCHES:
        outputs = run(images[:batch])
        if outputs.shape != logits[:batch].shape:
            raise ValueError(f"logits have the shape {tuple(outputs.shape)}, not {tuple(logits[:batch].shape)}")
        found[str(batch)] = float((outputs - logits[:batch]).abs().max())
    return found


def _weights(folder: Path) -> dict[str, float]:
    """Weights alone cannot be run without a builder; that they load and are finite is what can be said."""
    from safetensors.torch import load_file

    tensors = load_file(str(folder / "weights.safetensors"))
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise ValueError("a weight is not finite")
    return {"tensors_lost": 0.0}


def _examine(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    reference = load_file(str(folder / "reference.safetensors"))
    found: dict[str, Any] = {}
    for form, load in (("model.pt2", _pt2), ("model.onnx", _onnx)):
        if not (folder / form).exists():
            continue
        try:
            found[form] = _differences(load(folder), reference["images"], reference["logits"])
        except Exception as error:  # noqa: BLE001  # whatever a form says is what has to be reported
            found[form] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        found["weights.safetensors"] = _weights(folder)
    except Exception as error:  # noqa: BLE001  # as above
        found["weights.safetensors"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return found


def main(folders: Sequence[str]) -> None:
    """Examine folders and print the result."""
    sys.meta_path.insert(0, _Forbidden())
    import torch

    torch.set_num_threads(1)
    found = {Path(folder).name: _examine(Path(folder)) for folder in folders}
    assert not any(name.split(".")[0] in FORBIDDEN for name in sys.modules)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
