"""What the nodes of a graph do in training beside what they do in evaluation."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nas_blockout.graph.functional import Functional, Untraceable
from nas_blockout.graph.operations import bound, name_of, place_of

_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_SYMBOL = re.compile(r"\bs\d+\b")


@dataclass(frozen=True, slots=True)
class DropPath:
    """A value is replaced by zeros at random: stochastic depth.

    Args:
        rate: Probability of zeros, from 0 to 1.
        per_image: Whether each image is drawn for itself, or the whole batch at once.
        scale: Whether what stays is divided by the probability to stay.
    """

    rate: float
    per_image: bool = True
    scale: bool = True


@dataclass(frozen=True, slots=True)
class Dropout:
    """Entries of a value are dropped and the others divided by the probability to stay.

    Args:
        rate: Probability to be dropped, from 0 to 1.
        per_map: Whether whole channels are dropped.
    """

    rate: float
    per_map: bool = False


@dataclass(frozen=True, slots=True)
class AttentionDropout:
    """Attention drops entries of its weights.

    Args:
        rate: Probability to be dropped, from 0 to 1.
    """

    rate: float


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """A batch norm uses the statistics of the batch and updates its running ones.

    Args:
        momentum: Share of the batch in the running statistics; None for the average over all batches.
    """

    momentum: float | None


Training = DropPath | Dropout | AttentionDropout | BatchStatistics


def merged(
    evaluated: Functional, trained: Functional, averaging: frozenset[str]
) -> tuple[fx.Graph, dict[fx.Node, Training]]:
    """Return the graph of evaluation, made of that of training, and what its nodes do in training.

    Args:
        evaluated: The network in evaluation.
        trained: The network in training; its graph is changed into that of evaluation and returned.
        averaging: Names of the running means of batch norms that average over all batches.

    Raises:
        Untraceable: The network does something else in training than dropout, stochastic depth and batch norm.
    """
    training = _Evaluation(trained, averaging).change()
    numbers: dict[Any, int] = {}
    expected, actual = _Keys(evaluated, numbers), _Keys(trained, numbers)
    if expected.of(evaluated.output) != actual.of(trained.output):
        raise Untraceable(_first_difference(evaluated, expected, trained, actual))
    return trained.graph, training


class _Evaluation:
    """Changes a graph of training into one of evaluation.

    Args:
        trained: Is changed.
        averaging: As of `merged`.
    """

    def __init__(self, trained: Functional, averaging: frozenset[str]) -> None:
        self.trained = trained
        self.averaging = averaging
        self.training: dict[fx.Node, Training] = {}

    def change(self) -> dict[fx.Node, Training]:
        """Change every operation that is another one in training; return what each does there."""
        for node in list(self.trained.graph.nodes):
            if node.op != "call_function":
                continue
            name, given = name_of(node), bound(node)
            if name == "batch_norm":
                self._batch_norm(node, given)
            elif name in _DROPOUTS and given["train"]:
                _set(node, "train", False)
                self.training[node] = Dropout(given["p"], per_map=name.startswith("feature"))
            elif name == "scaled_dot_product_attention" and given["dropout_p"]:
                _set(node, "dropout_p", 0.0)
                self.training[node] = AttentionDropout(given["dropout_p"])
            elif given.get("train") and given.get("dropout") == 0.0:
                _set(node, "train", False)  # a recurrent layer
            elif name == "mul":
                self._drop_path(node)
        for node in reversed(list(self.trained.graph.nodes)):
            if node.op == "call_function" and not node.users:
                self.trained.graph.erase_node(node)  # the noise of stochastic depth
        return self.training

    def _batch_norm(self, node: fx.Node, given: Mapping[str, Any]) -> None:
        mean = given["running_mean"]
        if given["training"] and mean is not None:
            _set(node, "training", False)
            averages = self.trained.parameter_of.get(mean) in self.averaging
            self.training[node] = BatchStatistics(None if averages else given["momentum"])

    def _drop_path(self, node: fx.Node) -> None:
        operands = [each for each in node.args if isinstance(each, fx.Node)]
        for value, noise in ((operands[0], operands[-1]), (operands[-1], operands[0])):
            drop = _noise(noise, value) if len(operands) == 2 else None
            if drop is not None:
                node.target = torch.ops.aten.alias.default
                node.args, node.kwargs = (value,), {}
                self.training[node] = drop
                return


def _set(node: fx.Node, argument: str, value: Any) -> None:
    """Give a call another argument, by its name in the schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    position = [each.name for each in node.target._schema.arguments].index(argument)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(argument, value)


def _noise(node: fx.Node, value: fx.Node) -> DropPath | None:
    """Return which stochastic depth a factor is the noise of, None where it is something else.

    The noise is drawn as ones and zeros, one for each image or one for all, and may be divided by the share of ones.
    """
    scale = 1.0
    if node.op == "call_function" and name_of(node) == "div" and isinstance(node.args[1], float):
        scale, node = node.args[1], node.args[0]  # type: ignore[assignment]
    if node.op != "call_function" or name_of(node) != "bernoulli":
        return None
    keep = bound(node).get("p")
    rows, *rest = node.meta["val"].shape
    if not isinstance(keep, float) or any(size != 1 for size in rest) or scale not in (1.0, keep):
        return None
    if len(rest) + 1 != value.meta["val"].dim() or str(rows) not in ("1", str(value.meta["val"].shape[0])):
        return None
    return DropPath(round(1.0 - keep, 12), per_image=str(rows) != "1", scale=scale != 1.0)


class _Keys:
    """Numbers of what nodes compute: equal numbers, equal functions; dropout and stochastic depth are looked through.

    Args:
        graph: In evaluation.
        numbers: Of all keys so far, shared by graphs that are compared.
    """

    def __init__(self, graph: Functional, numbers: dict[Any, int]) -> None:
        self.graph = graph
        self.numbers = numbers
        self.known: dict[fx.Node, int] = {}
        for node in graph.graph.nodes:
            if node.op != "output":
                self.known[node] = self._number(node)

    def of(self, node: fx.Node) -> int:
        """Return the number of a node."""
        return self.known[node]

    def _number(self, node: fx.Node) -> int:
        if node.op == "placeholder":
            key: Any = self._placeholder(node)
        elif not isinstance(node.meta.get("val"), Tensor | tuple | list):
            # A size: the two exports call the number of images otherwise.
            key = ("size", _SYMBOL.sub("images", str(node.meta.get("val"))))
        else:
            given, name = bound(node), name_of(node)
            first = next(iter(given.values()), None)
            if name == "alias" or (name in _DROPOUTS and not given["train"]):
                return self.known[first]  # type: ignore[index]
            key = (str(node.target), self._plain(list(given.items())))
        return self.numbers.setdefault(key, len(self.numbers))

    def _placeholder(self, node: fx.Node) -> Any:
        if node in self.graph.parameter_of:
            return ("state", self.graph.parameter_of[node])
        if node in self.graph.constants:
            value = self.graph.constants[node].detach().cpu().contiguous()
            content = hashlib.sha256(value.view(torch.uint8).numpy().tobytes() if value.dim() else repr(value).encode())
            return ("constant", str(value.dtype), tuple(value.shape), content.hexdigest())
        return ("images",)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return ("node", self.known[value])
        if isinstance(value, tuple | list):
            return tuple(self._plain(each) for each in value)
        return str(value)


def _first_difference(evaluated: Functional, expected: _Keys, trained: Functional, actual: _Keys) -> str:
    for keys, others, mode in ((actual, expected, "training"), (expected, actual, "evaluation")):
        known = set(others.known.values())
        for node, key in keys.known.items():
            if key not in known and node.op == "call_function":
                where = place_of(node)
                return (
                    "a network must compute the same in training as in evaluation, dropout, stochastic depth and batch "
                    f"norm apart; {name_of(node)}{f' at {where}' if where else ''} is done in {mode} only"
                )
    return (
        "a network must compute the same in training as in evaluation, dropout, stochastic depth and batch norm apart; "
        f"{len(trained.graph.nodes)} operations of training and {len(evaluated.graph.nodes)} of evaluation differ in "
        "their order"
    )
