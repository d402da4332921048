"""The step of every method as one compiled function: no graph breaks, few compilations, the plain step's numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from nas_blockout.training.precision import CompiledLoss
from nas_blockout.training_protocol import TrainableModel
from tests.nas_blockout.methods.trained_models import EPOCHS, METHODS, batch, layers_of, model_of, prepared

CPU = torch.device("cpu")


class Counting:
    """A backend that computes what it is given as it is, and counts how often it is given something."""

    def __init__(self) -> None:
        self.compilations = 0

    def __call__(self, module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.compilations += 1
        return module.forward


# One variant of each method: what is compiled again depends on its layers and phases, not on estimators and rates.
KINDS = [name for name in METHODS if "," not in name]


def gradients(model: TrainableModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros(()) if value is None else value for name, value in zip(names, found, strict=True)}


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_is_one_graph_that_computes_what_the_plain_step_does(name: str) -> None:
    found, expected = prepared(name), prepared(name)
    x, y = batch()
    compiled = CompiledLoss(found, CPU, "float32", backend="eager", fullgraph=True)
    ours = compiled(x, y, torch.Generator().manual_seed(3))
    theirs = expected.loss(x, y, torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for of_one, of_other in zip(gradients(found, ours).items(), gradients(expected, theirs).items(), strict=True):
        torch.testing.assert_close(of_one[1].sum(), of_other[1].sum(), rtol=1e-4, atol=1e-5, msg=of_one[0])
        if of_one[1].dim() == of_other[1].dim():
            torch.testing.assert_close(of_one[1], of_other[1], rtol=1e-4, atol=1e-5, msg=of_one[0])
    for buffer, value in dict(expected.named_buffers()).items():
        # Nobody reads how many batches were seen, as the momentum of normalization is fixed; the route that a compiled
        # BlockDrop takes counts two a step.
        if buffer.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(found.get_buffer(buffer), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_smaller_batches_and_new_epochs_are_not_compiled_again(name: str) -> None:
    model, counting = model_of(name).train(), Counting()
    compiled = CompiledLoss(model, CPU, "float32", backend=counting, fullgraph=True)
    generator, by_epoch = torch.Generator().manual_seed(0), []
    for epoch in range(EPOCHS):
        for layer in layers_of(model):
            layer.prepare_epoch(epoch, EPOCHS)
        if any(layer.needs_calibration for layer in layers_of(model)):
            model.eval()(batch(32)[0])
            model.train()
        compiled.forget()
        before = counting.compilations
        for images in (12, 12, 9, 12, 10):
            compiled(*batch(images), generator).backward()
        by_epoch.append(counting.compilations - before)
    phases = 3 if name.startswith("blockdrop") else 1
    assert sum(by_epoch) <= 2 * phases  # for the size of most batches, and for any size
    assert by_epoch[-1] == 0


def test_what_a_compiled_step_takes_is_drawn_by_the_generator_alone() -> None:
    compiled = CompiledLoss(prepared("dropout"), CPU, "float32", backend="eager", fullgraph=True)
    before = torch.get_rng_state()
    first, again, other = (compiled(*batch(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
