"""A module as a functional graph of ATen operations, in evaluation, with what is different in training."""

import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from nas_blockout.backbones.factory import several_inputs
from nas_blockout.graph.functional import Untraceable, make_functional
from nas_blockout.graph.operations import is_user_code, name_of, place_of
from nas_blockout.graph.training import Training, merged

__all__ = ["Trace", "Untraceable", "trace"]

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic", "torch.nn.quantized", "torch.nn.intrinsic", "torchao")
_MOST_IMAGES = 4096
COUNTERS = "num_batches_tracked"  # buffers of batch norms, whose values no graph depends on
# Operations that an export specializes to the number of images, and what to write instead.
_DISTANCES = "Write the distances out, as in (x[:, None] - y).square().sum(-1).sqrt()"
_OF_FIXED_NUMBER = {"cdist": _DISTANCES, "_cdist_forward": _DISTANCES, "_euclidean_dist": _DISTANCES}


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A network as a graph of functional ATen operations without what nothing reads.

    Args:
        graph: As the network computes in evaluation. Its nodes keep what the export knew of them, in `meta`.
        image: The placeholder of the images.
        output: The node of the logits.
        parameter_of: Placeholders of parameters and buffers, and their names in the state dict.
        constants: Placeholders of tensors that are part of the graph, and of buffers of whole numbers, such as indices,
            with their values.
        training: Nodes that do something else in training.
    """

    graph: fx.Graph
    image: fx.Node
    output: fx.Node
    parameter_of: Mapping[fx.Node, str]
    constants: Mapping[fx.Node, Tensor]
    training: Mapping[fx.Node, Training]

    @property
    def lacks_values(self) -> bool:
        """Whether the graph has constants without values, or makes some where there are none.

        That is so if a network on the device ``meta`` reads more than its parameters there.
        """
        asked = (argument for node in self.graph.nodes for argument in (*node.args, *node.kwargs.values()))
        on_meta = any(isinstance(each, torch.device) and each.type == "meta" for each in asked)
        return on_meta or any(
            value.is_meta and not self.parameter_of.get(node, "").endswith(COUNTERS)
            for node, value in self.constants.items()
        )


def trace(module: nn.Module, shape: tuple[int, ...]) -> Trace:
    """Return the graph of a network.

    The module is as before afterward: its modes, its weights, and whether attention may take its fast path.

    Args:
        module: Returns logits ``(images, classes)`` for images ``(images, *shape)``.
        shape: Of one image: channels, height and width.

    Raises:
        Untraceable: The network cannot be exported, or is none whose nodes could be told; the message says why, where
            and what to do.
    """
    _require_plain_weights(module)
    _require_one_input(module)
    names = _first_names(module)
    with _as_it_was(module), _quiet():
        averaging = _with_momentum(module)
        programs = {"evaluation": _export(module.eval(), shape), "training": _export(module.train(), shape)}
        for mode, program in programs.items():
            _require_logits(program, mode)
        evaluated, trained = (make_functional(program, names) for program in programs.values())
    graph, training = merged(evaluated, trained, averaging)
    state = dict(module.named_buffers())
    indices = {
        node: state[name].detach().clone()
        for node, name in trained.parameter_of.items()
        if name in state and not state[name].is_floating_point()
    }
    constants = {**trained.constants, **indices}
    return Trace(graph, trained.image, trained.output, trained.parameter_of, constants, training)


def _require_one_input(module: nn.Module) -> None:
    if problem := several_inputs(module):
        raise Untraceable(problem)


def _require_plain_weights(module: nn.Module) -> None:
    for path, child in module.named_modules():
        if type(child).__module__.startswith(_QUANTIZED) and "quant" in type(child).__module__:
            raise Untraceable(
                f"a network must not be quantized: {path or 'the network'!r} is a {type(child).__name__}, whose "
                "weights cannot be masked. Quantize the network that is derived instead"
            )
        if isinstance(child, torch.jit.ScriptModule):
            raise Untraceable(f"{path or 'the network'!r} is compiled by TorchScript: give the module before scripting")
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise Untraceable(
                f"{name!r} has no shape yet: run the network once on a batch, so that lazy modules have one"
            )
        if value.is_quantized or type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            raise Untraceable(
                f"the weights of a network must be plain tensors, not quantized or distributed ones: {name!r} is a "
                f"{type(value).__name__} of {value.dtype}. Quantize the network that is derived instead"
            )


def _first_names(module: nn.Module) -> Mapping[str, str]:
    """Return the name under which each parameter and buffer is known, by any of its names."""
    first: dict[int, str] = {}
    names = {}
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in tensors:
        names[name] = first.setdefault(id(tensor), name)
    return names


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Bring back modes and momenta, and attention's fast path, which would hide attention in one operation."""
    modes = [(child, child.training) for child in module.modules()]
    momenta = [
        (child, child.momentum) for child in module.modules() if isinstance(child, nn.modules.batchnorm._NormBase)
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child, mode in modes:
            child.training = mode
        for child, momentum in momenta:
            child.momentum = momentum


def _with_momentum(module: nn.Module) -> frozenset[str]:
    """Give every batch norm a momentum; return the names of the running means of those that had none.

    A batch norm without momentum averages over all batches and reads their number, which an export cannot follow.
    """
    averaging = set()
    for path, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._NormBase) and child.momentum is None and child.track_running_stats:
            child.momentum = 0.1
            averaging.add(f"{path}.running_mean".lstrip("."))
    return frozenset(averaging)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what an export warns of, logs and prints (the graph up to an error): what matters of it is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _export(module: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    weight = next((each for each in module.parameters() if each.is_floating_point()), None)
    if weight is None:
        raise Untraceable(f"{type(module).__name__} has no parameters: there is nothing to learn a structure of")
    # Two images: one would be taken for a dimension to broadcast along.
    images = torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device)
    number = torch.export.Dim("images", min=1, max=_MOST_IMAGES)
    try:
        return torch.export.export(module, (images,), dynamic_shapes=({0: number},), strict=False)
    except Exception as error:  # whatever the user's code and the export raise, of which there is no list
        raise Untraceable(_why(error, module, shape, images)) from error


def _why(error: Exception, module: nn.Module, shape: tuple[int, ...], images: Tensor) -> str:
    """Return the one sentence that says why a module could not be exported."""
    name, kind, told = type(module).__name__, type(error).__name__, str(error).strip()
    where = _where(error)
    if "DataDependent" in kind or "data-dependent" in told:
        return (
            f"{name} decides by the values of its input what to compute{where}, which a graph cannot hold. "
            "Write it without a branch on them, for instance with torch.where"
        )
    if "Constraints violated" in told or "specialized" in told:
        if fixing := _fixes_the_number(module, images):
            return fixing
        return (
            f"{name} works for a fixed number of images only{where}. Take the number from the input, as in "
            "x.view(x.shape[0], ...), or x.flatten(1)"
        )
    line = told.splitlines()[0] if told else "no message"
    return f"{name} cannot be exported for images of shape {shape}{where}: {kind}: {line}"


def _fixes_the_number(module: nn.Module, images: Tensor) -> str | None:
    """Return which operation of torch itself can be exported for a fixed number of images only, None if none is known.

    The error of the export names the user's code for it, which is not at fault.
    """
    program = torch.export.export(module, (images,), strict=False)
    for node in program.graph.nodes:
        if node.op == "call_function" and name_of(node) in _OF_FIXED_NUMBER:
            return (
                f"{type(module).__name__} calls torch.{name_of(node).strip('_')} at {place_of(node)}, which torch "
                f"exports for a fixed number of images only. {_OF_FIXED_NUMBER[name_of(node)]}"
            )
    return None


def _where(error: BaseException | None) -> str:
    """Return `` at file:line, `code` `` of the innermost user's code in the traceback of an error or of its cause."""
    while error is not None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_code(frame.filename)]
        if frames:
            last = frames[-1]
            return f" at {last.filename}:{last.lineno}" + (f", `{last.line}`" if last.line else "")
        error = error.__cause__ or error.__context__
    return ""


def _require_logits(program: torch.export.ExportedProgram, mode: str) -> None:
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise Untraceable(
            f"a network must return one tensor, its logits; in {mode} it returns {len(outputs)} values. "
            "Build it without auxiliary outputs (torchvision: aux_logits=False), or wrap it in a module that returns "
            "the logits alone"
        )
    value = outputs[0].meta["val"]
    if not isinstance(value, Tensor) or value.dim() != 2:
        shown = f"shape (images, {', '.join(map(str, value.shape[1:]))})" if isinstance(value, Tensor) else repr(value)
        raise Untraceable(
            f"a network must return logits of shape (images, classes); in {mode} it returns {shown}. "
            "Only networks for classification have a class layer"
        )
