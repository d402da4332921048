"""In what numbers the step of every method computes, what it reads of the device, and how it ends if it diverges."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nas_blockout.methods import masking
from nas_blockout.randomness.draws import DrawCounter, DrawsBefore
from nas_blockout.training import TrainingSettings, fit
from nas_blockout.training.precision import autocast, precision_note, products, require_compiler
from nas_blockout.training_protocol import TrainableModel
from tests.nas_blockout.methods.trained_models import METHODS, batch, loaders, model_of, prepared

READS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "bincount", "is_nonzero"}
CHEAP = ("none", "dropout", "dropblock", "dropcluster", "blockout")  # of each kind of layer one: trainings take time


class Reads(TorchDispatchMode):
    """Counts the operations for which the host waits until the device has a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket._qualified_op_name.removeprefix("aten::") in READS
        return func(*args, **(kwargs or {}))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_in_half_precision_has_masters_gradients_and_loss_in_single(name: str) -> None:
    model, x, y = prepared(name), *batch(24)
    plain = prepared(name).loss(x, y, seeded())
    with autocast("bf16", "cpu"):
        loss = model.loss(x, y, seeded())
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0.1, atol=0.05)
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_half_precision_is_what_the_products_of_a_network_compute_in() -> None:
    model, x = prepared("none").eval(), batch()[0]
    with autocast("bf16", "cpu"):
        assert model(x).dtype == torch.bfloat16
    with autocast("tf32", "cpu"):
        assert model(x).dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Asked on a processor alone, where nothing is waited for, to choose the faster of two equal forms.
    monkeypatch.setattr(masking, "_are_drawn", lambda memberships: False)
    model, (x, y), counter = prepared(name), batch(), DrawCounter()
    model.loss(x, y, counter)
    draws = counter.drawn(seeded(), x.device)
    with Reads() as reads:
        model.loss(x, y, DrawsBefore(*draws)).backward()
    assert reads.count == 0


@pytest.mark.parametrize("name", CHEAP)
def test_what_an_epoch_reads_does_not_grow_with_its_batches(name: str) -> None:
    counts = []
    for images in (36, 84):
        with Reads() as reads:
            list(fit(model_of(name), loaders(images, images), TrainingSettings(epochs=1, batch_size=12), seed=0))
        counts.append(reads.count)
    # Eight batches more; how far k-means goes, and which alarms telemetry looks for, depends on the values.
    assert abs(counts[1] - counts[0]) < 4


def _diverged(model: TrainableModel) -> TrainableModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


@pytest.mark.parametrize("name", ["blockout", "blockout, arm", "blockdrop, static", "blockdrop, gumbel", "dropout"])
def test_probabilities_that_are_no_numbers_end_the_training_with_its_reason(name: str) -> None:
    model = _diverged(model_of(name))
    (record,) = fit(model, loaders(24, 12), TrainingSettings(epochs=2, batch_size=12), seed=0)
    assert record.failure == "the training loss became nan in epoch 0"


def test_tensorfloat_off_a_card_is_float32_and_says_so() -> None:
    note = precision_note("tf32", "cpu")
    assert note is not None
    assert "computed in float32" in note
    assert precision_note("float32", "cpu") is precision_note("tf32", "cuda") is None
    with products("tf32", "cpu"):
        pass


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler.*install g\+\+, or set training.compile to false"):
        require_compiler("cpu")
    with pytest.raises(ValueError, match="needs a training in one process, got 2 ranks"):
        require_compiler("cpu", 2)
