"""A program as an ONNX graph without what the runtime would only have to fold away.

The exporter's own clean-up also looks for some seventy patterns at each operation, one of them among all pairs of
slices: of a network of 770 operations that took 5.6 seconds of the processor, this 0.6. What the patterns replace,
additions of zero and products with one, onnxruntime leaves out by itself: neither form took longer to run than the
other. For every network the exporter also parses the source of its 500 operators, only to know a name that it does not
use: a third of a second, half of the time of a small network. Here it does that once a process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def onnx_program(
    program: torch.export.ExportedProgram, images: Tensor, *, inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    """Return an exported program as an ``ONNXProgram``: constants computed, once each, and nothing that is not used.

    Args:
        program: What is exported.
        images: An example, shape ``(batch, channels, height, width)``.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
    """
    with _operators_read_once():
        exported = torch.onnx.export(
            program,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            optimize=False,
        )
    assert exported is not None
    _clean(exported.model)
    return exported


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """Let the exporter take its list of operators from memory within; one that gets it elsewhere reads it as ever."""
    try:
        exporter: Any = import_module("torch.onnx._internal.exporter._registration")
        reading, names = exporter.onnxscript_apis.get_torchlib_ops, vars(exporter.onnxscript_apis)
    except (ImportError, AttributeError):
        yield  # of another version of torch
        return
    before = names.get("get_torchlib_ops")  # what is asked for is usually one level below, behind a lazy import
    names["get_torchlib_ops"] = lambda: list(_operators(reading))
    try:
        yield
    finally:
        if before is None:
            del names["get_torchlib_ops"]
        else:
            names["get_torchlib_ops"] = before


@cache
def _operators(reading: Callable[[], list[Any]]) -> list[Any]:
    return reading()


def _clean(model: Any) -> None:
    import onnx_ir  # with onnxscript, which is an optional package
    from onnx_ir.passes import common
    from onnxscript import optimizer

    onnx_ir.passes.Sequential(common.InlinePass())(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    onnx_ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.RemoveUnusedOpsetsPass(),
    )(model)
