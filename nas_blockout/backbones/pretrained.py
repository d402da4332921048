"""Weights from a file into a network, strictly; no file can run code."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nas_blockout.settings_fields import Conflict

FORM = r"[^\x00\r\n]+\.(safetensors|pth|pt)"
FORM_SHOWN = "a file whose name ends in .safetensors, .pth or .pt"
FORM_EXAMPLE = "resnet18.safetensors"
_KEY = "backbone.weights"
_INNER = ("state_dict", "model")  # where training scripts put the weights beside optimizer and epoch
_MOST_LISTED = 12
_SAVE_ONLY = "save only the weights, with torch.save(network.state_dict(), ...) or as safetensors"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name.

    Args:
        path: A file of safetensors, or one that `torch.save` wrote, of which nothing but tensors is read: a state
            dictionary, or a mapping with one under ``state_dict`` or ``model``, or with one only.

    Raises:
        Conflict: There is no such file, or it is another kind of file.
    """
    if not path.is_file():
        raise Conflict(
            f"{_KEY}: there is no file {path}; give the path of one, or run first the study that exports it", _KEY
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise Conflict(f"{_KEY}: {path} is no safetensors file ({error})", _KEY) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise Conflict(
            f"{_KEY}: {path} holds more than tensors, and loading it could run code, so it is refused; {_SAVE_ONLY}",
            _KEY,
        ) from None
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        raise Conflict(f"{_KEY}: {path} is no file that torch.save wrote ({text})", _KEY) from None
    return _state_in(content, path)


def _state_in(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dictionary in what `torch.save` wrote: itself, one under a known key, or the only one there is.

    Raises:
        Conflict: There is none, or there are several; the message names the keys.
    """
    for name in _INNER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if _is_state(content):
        return dict(content)
    if not isinstance(content, Mapping):
        raise Conflict(
            f"{_KEY}: {path} holds a {type(content).__name__} instead of a state dictionary; {_SAVE_ONLY}", _KEY
        )
    inner = [key for key, value in content.items() if _is_state(value)]
    if len(inner) == 1:
        return dict(content[inner[0]])
    keys = ", ".join(map(repr, [*content][:_MOST_LISTED])) or "nothing"
    if not inner:
        raise Conflict(f"{_KEY}: {path} holds no state dictionary, but {keys}; {_SAVE_ONLY}", _KEY)
    several = ", ".join(map(repr, inner))
    raise Conflict(
        f"{_KEY}: {path} holds several state dictionaries, under {several}; save only one, such as by "
        f"torch.save(torch.load(path)[{inner[0]!r}], 'weights.pth')",
        _KEY,
    )


def _is_state(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether a value is a mapping from names to tensors, with a tensor."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())
    )


def _unwrapped(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights without the part that stands before all of their names, such as ``module.``, if no name fits."""
    while weights and not any(name in expected for name in weights):
        first = {name.partition(".")[0] for name in weights}
        if len(first) > 1 or not all("." in name for name in weights):
            break
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    return weights


def load_pretrained(
    network: nn.Module, weights: Mapping[str, Tensor], *, source: str, classes_layer: str | None
) -> int:
    """Put weights into a network: each tensor of the network must be there with its shape, and no other.

    Names may all stand behind one or more names of modules, such as ``module.`` in the exported model of a network like
    this, or in what torch's parallel wrappers save. Only the weights of the layer that gives the logits are left out
    where they are of another number of classes.

    Args:
        network: Changed in place.
        weights: Tensors by name.
        source: Name of the file, for errors.
        classes_layer: Name of the linear layer that gives the logits; None if there is no such layer.

    Returns:
        The number of classes of the weights that were left out; 0 if none were.

    Raises:
        Conflict: Tensors are missing, unexpected or of another shape, or hold NaN or infinity; the message lists them.
    """
    expected = network.state_dict()
    given, weights = weights, _unwrapped(weights, expected)
    if not any(name in expected for name in weights):
        weights = given  # so that the error has the names of the file
    shapes = {name: (tuple(weights[name].shape), tuple(expected[name].shape)) for name in expected if name in weights}
    differing = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    left_out = _of_other_classes(differing, classes_layer)
    faults = [
        *_listed("missing", [name for name in expected if name not in weights]),
        *_listed("unexpected", [name for name in weights if name not in expected]),
        *_listed(
            "of another shape",
            [
                f"{name} {_shape(there)} instead of {_shape(here)}"
                for name, (there, here) in differing.items()
                if not left_out
            ],
        ),
    ]
    broken = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if broken and not faults:
        raise Conflict(
            f"{_KEY}: {source} holds NaN or infinity{''.join(_listed(' in', broken)).replace(':', '')}; its training "
            "has diverged, so name the weights of an earlier epoch",
            _KEY,
        )
    if faults:
        raise Conflict(
            f"{_KEY}: {source} holds the weights of another network: {'; '.join(faults)}; name the weights of this "
            "network, or change the arguments of the factory",
            _KEY,
            "backbone.factory",
            "backbone.arguments",
        )
    loaded: dict[str, Any] = {name: value for name, value in weights.items() if name not in differing}
    network.load_state_dict({**expected, **loaded})
    return left_out


def _of_other_classes(differing: Mapping[str, tuple[tuple[int, ...], ...]], layer: str | None) -> int:
    """Return the number of classes of the file if all that differs is the classes layer's number of them, or 0."""
    prefix = f"{layer}." if layer else ""
    names = {f"{prefix}weight", f"{prefix}bias"}
    if layer is None or not differing or not set(differing) <= names:
        return 0
    if any(there[1:] != here[1:] for there, here in differing.values()):
        return 0
    return next(iter(differing.values()))[0][0]


def _listed(kind: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return [f"{kind}: {', '.join(names[:_MOST_LISTED])}{more}"] if names else []


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
