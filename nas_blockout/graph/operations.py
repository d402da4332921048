"""What an operation of an exported graph is called, what it is given, and where the user's code asks for it."""

import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_TORCH = str(Path(torch.__file__).parent)
_STANDARD_LIBRARY = str(Path(re.__file__).parents[1])
_HERE = str(Path(__file__).parent)
# Results that share memory with their first argument, at least sometimes.
_VIEWS = (
    "alias chunk contiguous detach expand expand_as flatten getitem movedim narrow permute reshape select slice split "
    "split_with_sizes squeeze t tensor_split to transpose type_as unbind unflatten unfold unsqueeze view view_as "
    "_unsafe_view"
)
VIEWS = frozenset(_VIEWS.split())
# Results that take only the shape and the type of their first argument.
_SHAPED_LIKE = (
    "empty_like full_like new_empty new_full new_ones new_zeros ones_like rand_like randn_like sym_size zeros_like"
)
SHAPED_LIKE = frozenset(_SHAPED_LIKE.split())


def name_of(node: fx.Node) -> str:
    """Return the name of a call without library, overload and mark of in-place: `add` for `aten.add_.Tensor`."""
    if node.target is operator.getitem:
        return "getitem"
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    name = node.target._schema.name.rpartition("::")[2]
    return name if not name.endswith("_") or name.endswith("__") else name[:-1]


def bound(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their names in the schema, defaults included.

    A call of something else than an ATen operation has its positional arguments under their numbers.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(number): value for number, value in enumerate(node.args)} | dict(node.kwargs)
    values: dict[str, Any] = {}
    for number, argument in enumerate(node.target._schema.arguments):
        if number < len(node.args):
            values[argument.name] = node.args[number]
        elif argument.name in node.kwargs:
            values[argument.name] = node.kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value if argument.has_default_value() else None
    return values


def draws(node: fx.Node) -> bool:
    """Whether a call draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def written(node: fx.Node) -> fx.Node | None:
    """Return what a call writes into, None where it makes something new."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    if not schema.is_mutable or not schema.name.endswith("_") or not node.args:
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


def is_user_code(path: str) -> bool:
    """Whether a file is neither torch's, nor Python's, nor one of this folder."""
    if path.startswith((_TORCH, "<")):
        return False
    return "site-packages" in path or not path.startswith((_STANDARD_LIBRARY, _HERE))


def place_of(node: fx.Node) -> str:
    """Return ``file:line`` of the innermost user's code that made a call, or the module's path, or nothing."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for path, line in reversed(frames):
        if is_user_code(path):
            return f"{path}:{line}"
    return module_of(node)


def module_of(node: fx.Node) -> str:
    """Return the path of the innermost module whose forward made a call; empty for the network itself."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def shape_of(value: Any) -> Any:
    """Return the shape of a tensor, or of each of several."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(shape_of(each) for each in value) if isinstance(value, tuple | list) else None
