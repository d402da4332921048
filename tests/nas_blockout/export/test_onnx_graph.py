"""A program as an ONNX graph: constants are computed once, and nothing is left that is not used."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
