"""A program as an ONNX graph: constants are computed once, and nothing is left that is not used."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_blockout.export.models import _quiet
from nas_blockout.export.onnx_graph import onnx_program

pytest.importorskip("onnxscript")


class Slices(nn.Module):
    """A network that reads its nodes in slices, of which two are equal, and computes something that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(6, 2)
        self.register_buffer("unused", torch.ones(8))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x.mul(self.unused)
        parts = [x.narrow(1, start, 2) for start in (0, 4, 0)]
        logits: Tensor = self.second(torch.cat(parts, 1))
        return logits


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of its own future
def test_it_computes_the_same_for_any_number_of_images_with_no_more_than_that_needs(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    network = Slices().eval()
    example = torch.rand(2, 8)
    program = torch.export.export(network, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})
    exported = onnx_program(program, example, inputs=["images"], outputs=["logits"])
    kinds = Counter(node.op_type for node in exported.model.graph)
    assert kinds == {"Gemm": 2, "Slice": 2, "Concat": 1}
    exported.save(tmp_path / "network.onnx", external_data=False)
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(5, 8)
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    np.testing.assert_allclose(logits, network(x).detach().numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # as above
def test_the_source_of_the_exporters_operators_is_read_for_the_first_network_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxscript import values
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    kind, parsed = values.TracedOnnxFunction, Counter[str]()
    reading = kind.function_ir.fget

    def counted(function: Any) -> Any:
        parsed[function.name] += 1
        return reading(function)

    monkeypatch.setattr(kind, "function_ir", property(counted))
    example = torch.rand(2, 3)
    program = torch.export.export(nn.Linear(3, 2).eval(), (example,))
    onnx_program(program, example, inputs=["images"], outputs=["logits"])
    parsed.clear()
    onnx_program(program, example, inputs=["images"], outputs=["logits"])
    assert not parsed
    ONNXRegistry.from_torchlib()
    assert parsed.total() > 300, "whoever else exports a network finds the exporter as it was"


def test_the_exporter_notes_source_text_again_once_a_model_is_written() -> None:
    before = torch.fx.config.do_not_emit_stack_traces
    with _quiet():
        program = torch.export.export(nn.Linear(3, 2).eval(), (torch.rand(2, 3),))
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)
    assert torch.fx.config.do_not_emit_stack_traces == before
    noted = torch.export.export(nn.Linear(3, 2).eval(), (torch.rand(2, 3),))
    assert any("stack_trace" in node.meta for node in noted.graph.nodes)
