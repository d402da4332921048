"""The laws of losses: what a training makes small must do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.plugins.choices import require_settings
from nas_blockout.serialization import from_json, to_json
from nas_blockout.testing.seeds import no_global_randomness
from nas_blockout.training import Loss
from nas_blockout.training.recipes.criterion import MeanLoss

_IMAGES = 12


@dataclass(frozen=True, slots=True)
class LossCase:
    """One loss under the laws.

    Args:
        loss: What the entry point names.
        settings: Its settings.
        classes: Number of classes, 2 or more.
    """

    loss: Loss
    settings: Any
    classes: int = 5


def loss_laws(case: LossCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws of a loss, by what they say.

    Args:
        case: The loss.
    """
    laws: list[Callable[[LossCase], None]] = [
        settings_of_the_loss_are_a_value_that_json_carries,
        every_image_has_a_loss,
        the_loss_of_an_image_depends_on_its_row_alone,
        gradients_are_finite_and_reach_the_logits,
        a_small_step_against_the_gradient_lowers_the_loss,
        labels_and_their_probabilities_have_one_loss,
        the_loss_draws_nothing_and_changes_no_input,
    ]
    return {law.__name__: partial(law, case) for law in laws}


def settings_of_the_loss_are_a_value_that_json_carries(case: LossCase) -> None:
    """Settings are a frozen dataclass with defaults and sentences, and JSON has all of them."""
    require_settings(case.loss.settings)
    settings: object = case.settings
    assert isinstance(settings, case.loss.settings)
    assert from_json(case.loss.settings, to_json(case.settings), where="loss_options") == case.settings


def every_image_has_a_loss(case: LossCase) -> None:
    """One finite number an image, for labels and for mixed targets, and for logits that are very sure or all alike."""
    logits, targets = _batch(case)
    for z in (logits, 60 * logits, torch.zeros_like(logits)):
        for q in (targets, _mixed(targets)):
            losses = _losses(case, z, q)
            assert losses.shape == (_IMAGES,), f"one loss an image, got the shape {tuple(losses.shape)}"
            assert losses.dtype == z.dtype, f"the loss has the type of its logits, got {losses.dtype}"
            assert losses.isfinite().all(), "every loss is finite"


def the_loss_of_an_image_depends_on_its_row_alone(case: LossCase) -> None:
    """In another order, or in another batch, an image has the same loss: ranks and accumulation divide batches."""
    logits, targets = _batch(case)
    q, order = _mixed(targets), torch.arange(_IMAGES).flip(0)
    losses = _losses(case, logits, q)
    torch.testing.assert_close(_losses(case, logits[order], q[order]), losses[order])
    torch.testing.assert_close(_losses(case, logits[:3], q[:3]), losses[:3])


def gradients_are_finite_and_reach_the_logits(case: LossCase) -> None:
    """Autograd differentiates the loss, also where the network is very sure, and wrong."""
    logits, targets = _batch(case)
    assert _gradient(case, logits, targets).abs().sum() > 0, "a gradient reaches the logits"
    for q in (targets, _mixed(targets)):
        assert _gradient(case, 60 * logits, q).isfinite().all(), "every gradient is finite"


def a_small_step_against_the_gradient_lowers_the_loss(case: LossCase) -> None:
    """The gradient is that of the loss: whoever goes against it gets less."""
    logits, targets = (each.double() for each in _batch(case))
    gradient = _gradient(case, logits, targets)
    lower = _losses(case, logits - 1e-3 * gradient / gradient.norm(), targets).sum()
    assert lower < _losses(case, logits, targets).sum(), "a small step against the gradient lowers the loss"


def labels_and_their_probabilities_have_one_loss(case: LossCase) -> None:
    """The mean over a batch is one number, whether targets are labels or probabilities, also in half precision."""
    logits, targets = _batch(case)
    mean = MeanLoss("case", case.loss.per_image, case.settings)
    labels = targets.argmax(1)
    torch.testing.assert_close(mean(logits, labels), mean(logits, targets))
    torch.testing.assert_close(mean(logits, labels), _losses(case, logits, targets).mean())
    assert mean(logits.bfloat16(), labels).dtype == torch.float32, "the loss is computed in float32"


def the_loss_draws_nothing_and_changes_no_input(case: LossCase) -> None:
    """The same batch has the same loss, logits and targets stay as they are, and no global source is drawn from."""
    logits, targets = _batch(case)
    kept = logits.clone(), targets.clone()
    with no_global_randomness():
        first, second = (_losses(case, logits, targets) for _ in range(2))
    assert torch.equal(first, second), "the same batch has the same loss"
    assert torch.equal(logits, kept[0]), "logits stay as they are"
    assert torch.equal(targets, kept[1]), "targets stay as they are"


def _batch(case: LossCase) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(_IMAGES) % case.classes
    return torch.randn(_IMAGES, case.classes, generator=generator), F.one_hot(labels, case.classes).float()


def _mixed(targets: Tensor) -> Tensor:
    return 0.7 * targets + 0.3 * targets.roll(1, 0)


def _losses(case: LossCase, logits: Tensor, targets: Tensor) -> Tensor:
    return case.loss.per_image(case.settings, logits, targets)


def _gradient(case: LossCase, logits: Tensor, targets: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_losses(case, leaf, targets).sum(), leaf)
    return gradient
