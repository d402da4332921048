"""The laws of methods: what a layer that a method puts into a network must do in training and in eval."""

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.methods import method_from_json, method_to_json
from nas_blockout.testing.seeds import SEED, no_global_randomness, seeded

Oracle = Callable[[Any, Tensor, torch.Generator | None], Tensor]
FEATURES = (6, 10)
MAPS = (3, 4, 6, 6)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DRAWS = 2000


def identity(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer that drops nothing returns, of one that stands between others."""
    return x


def nothing(layer: nn.Module) -> None:
    """Leave a layer as it was built."""


@dataclass(frozen=True, slots=True)
class MethodCase:
    """One layer under the laws.

    Args:
        construct: Builds a layer whose initial weights, if any, come from torch's global generator.
        shape: Of an input: ``(batch, features)``, or ``(batch, channels, height, width)``.
        oracle: Computes the same in loops, from the equations: ``oracle(layer, x, generator)``; eval without
            generator. None to leave out the laws that compare with it.
        plain: What the layer is when nothing is dropped.
        keep_all: Builds a layer that drops nothing; None if no settings do that.
        ready: Brings a new layer to where it draws.
        unbiased: Whether the mean of many draws approaches eval.
        method: Its name, which may be that of a plug-in.
    """

    construct: Callable[[], nn.Module]
    shape: tuple[int, ...] = FEATURES
    oracle: Oracle | None = None
    plain: Callable[[Any, Tensor], Tensor] = identity
    keep_all: Callable[[], nn.Module] | None = None
    ready: Callable[[Any], None] = nothing
    unbiased: bool = True
    method: str | None = None

    def input(self, dtype: torch.dtype = torch.float64, seed: int = SEED) -> Tensor:
        """Return an input."""
        return torch.randn(self.shape, generator=seeded(seed), dtype=torch.float64).to(dtype)

    def layer(self, dtype: torch.dtype = torch.float64, seed: int = SEED) -> nn.Module:
        """Return a layer in training that draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = self.construct()
        self.ready(layer)
        return layer.to(dtype).train()


def method_laws(case: MethodCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws that apply to a layer, by what they say.

    Args:
        case: The layer.
    """
    laws: list[Callable[[MethodCase], None]] = [
        eval_is_the_plain_layer,
        eval_is_deterministic_and_draws_nothing,
        training_without_a_generator_says_what_to_write,
        same_seed_gives_the_same_output_and_another_seed_another,
        one_generator_gives_a_new_draw_at_every_call,
        gradient_reaches_the_input_and_every_parameter,
        dtype_is_kept,
        device_is_kept,
        state_makes_another_layer_the_same,
        a_deep_copy_is_the_same_and_apart,
        eval_exports,
        no_global_randomness_is_consumed,
    ]
    laws += [training_equals_the_oracle_in_value_and_gradient, eval_equals_the_oracle] if case.oracle else []
    laws += [keep_all_is_the_plain_layer] if case.keep_all else []
    laws += [mean_of_many_draws_approaches_eval] if case.unbiased else []
    laws += [memory_format_is_kept_and_changes_no_value] if len(case.shape) == 4 else []
    laws += [settings_survive_json, settings_are_frozen_and_all_have_defaults] if case.method else []
    return {law.__name__: partial(law, case) for law in laws}


def gradients(output: Tensor, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradients of a weighted sum of an output at the input and all parameters."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()]))


def training_equals_the_oracle_in_value_and_gradient(case: MethodCase) -> None:
    """In training the layer computes what its equations say, and so does its gradient."""
    assert case.oracle is not None
    layer, x = case.layer(), case.input().requires_grad_()
    found, expected = layer(x, seeded()), case.oracle(layer, x, seeded())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, layer, x), gradients(expected, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def eval_equals_the_oracle(case: MethodCase) -> None:
    """In eval the layer computes what its equations say."""
    assert case.oracle is not None
    layer, x = case.layer().eval(), case.input()
    torch.testing.assert_close(layer(x), case.oracle(layer, x, None), rtol=1e-12, atol=1e-12)


def eval_is_the_plain_layer(case: MethodCase) -> None:
    """In eval nothing is dropped."""
    layer, x = case.layer().eval(), case.input()
    torch.testing.assert_close(layer(x), case.plain(layer, x), rtol=0, atol=0)


def eval_is_deterministic_and_draws_nothing(case: MethodCase) -> None:
    """In eval a layer returns the same again, and leaves a generator that it is given as it was."""
    layer, x, generator = case.layer().eval(), case.input(), seeded()
    before = generator.get_state()
    assert torch.equal(layer(x), layer(x, generator))
    assert torch.equal(generator.get_state(), before)


def training_without_a_generator_says_what_to_write(case: MethodCase) -> None:
    """Without a generator, training fails with a sentence that has the right call."""
    layer = case.layer()
    rule = f"{type(layer).__name__} needs a generator in training: call "
    try:
        layer(case.input())
    except ValueError as error:
        assert str(error).startswith(rule)  # noqa: PT017  # without pytest
        assert "generator=torch.Generator" in str(error)  # noqa: PT017
    else:
        raise AssertionError(f"training without a generator must raise a ValueError that begins with {rule!r}")


def same_seed_gives_the_same_output_and_another_seed_another(case: MethodCase) -> None:
    """What is drawn depends on the seed of the generator and on nothing else."""
    layer, x = case.layer(), case.input()
    assert torch.equal(layer(x, seeded()), layer(x, seeded()))
    assert not torch.equal(layer(x, seeded()), layer(x, seeded(SEED + 1)))


def one_generator_gives_a_new_draw_at_every_call(case: MethodCase) -> None:
    """Every call draws anew."""
    layer, x, generator = case.layer(), case.input(), seeded()
    assert not torch.equal(layer(x, generator), layer(x, generator))


def keep_all_is_the_plain_layer(case: MethodCase) -> None:
    """With settings that drop nothing, training is the plain layer."""
    assert case.keep_all is not None
    layer = replace(case, construct=case.keep_all).layer()
    x = case.input()
    torch.testing.assert_close(layer(x, seeded()), case.plain(layer, x), rtol=1e-14, atol=1e-14)


@torch.no_grad()
def mean_of_many_draws_approaches_eval(case: MethodCase) -> None:
    """Over many draws, training has the mean of eval."""
    layer, x, generator = case.layer(), case.input(), seeded()
    draws = torch.stack([layer(x, generator) for _ in range(_DRAWS)])
    error = (draws.mean(0) - layer.eval()(x)).abs()
    assert float((error / (draws.std(0) / _DRAWS**0.5 + 1e-12)).max()) < 5.5


def gradient_reaches_the_input_and_every_parameter(case: MethodCase) -> None:
    """No input and no parameter is left without a gradient for good."""
    layer, x, generator = case.layer(), case.input().requires_grad_(), seeded()
    for _ in range(30):
        layer(x, generator).square().sum().backward()
    for value in (x, *layer.parameters()):
        assert value.grad is not None
        assert bool((value.grad != 0).all())


def dtype_is_kept(case: MethodCase) -> None:
    """The output has the type of the input, and is finite, in training and in eval."""
    for dtype in _DTYPES:
        for training in (True, False):
            y = case.layer(dtype).train(training)(case.input(dtype), seeded())
            assert y.dtype == dtype
            assert bool(y.isfinite().all())


def device_is_kept(case: MethodCase) -> None:
    """The output is on the device of the input."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        layer, x = case.layer().to(device), case.input().to(device)
        assert layer(x, seeded(device=device)).device.type == device
        assert layer.eval()(x).device.type == device


def memory_format_is_kept_and_changes_no_value(case: MethodCase) -> None:
    """Feature maps that are channels last stay so, and others stay as they are."""
    for training in (True, False):
        layer = case.layer().train(training)
        x = case.input().contiguous(memory_format=torch.channels_last)
        assert layer(x, seeded()).is_contiguous(memory_format=torch.channels_last)
        assert layer(x.contiguous(), seeded()).is_contiguous()


def state_makes_another_layer_the_same(case: MethodCase) -> None:
    """A layer of the same settings with the saved state computes the same."""
    layer, x = case.layer(), case.input()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        other = case.construct().double()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.train()(x, seeded()), layer(x, seeded()))
    assert torch.equal(other.eval()(x), layer.eval()(x))


def a_deep_copy_is_the_same_and_apart(case: MethodCase) -> None:
    """A deep copy computes the same and shares no state."""
    layer, x = case.layer(), case.input()
    other = copy.deepcopy(layer)
    assert torch.equal(other(x, seeded()), layer(x, seeded()))
    for ours, theirs in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
        assert ours.numel() == 0 or ours.data_ptr() != theirs.data_ptr()


def eval_exports(case: MethodCase) -> None:
    """In eval the layer is exported by PyTorch for any size of batch, and computes the same."""
    layer, x = case.layer(torch.float32).eval(), case.input(torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
    assert torch.equal(program(x), layer(x))
    assert torch.equal(program(x[:1]), layer(x[:1]))


def no_global_randomness_is_consumed(case: MethodCase) -> None:
    """Nothing is drawn but from the generator that is given."""
    layer, x = case.layer(), case.input().requires_grad_()
    with no_global_randomness():
        case.ready(layer.float())
        layer.double().train()(x, seeded()).sum().backward()
        layer.eval()(x)


def settings_survive_json(case: MethodCase) -> None:
    """The settings are read back from what is recorded of them, and all have defaults."""
    settings = method_from_json({"name": case.method})
    document = method_to_json(settings)
    assert document["name"] == case.method
    assert method_from_json(document) == settings


def settings_are_frozen_and_all_have_defaults(case: MethodCase) -> None:
    """The settings are an immutable value with slots."""
    settings = method_from_json({"name": case.method})
    assert all(item.default is not MISSING for item in fields(settings))
    assert type(settings).__dataclass_params__.frozen
    assert not hasattr(settings, "__dict__")
