"""Losses of plug-ins: the laws, what settings of a training do to them, and training with one, compiled and resumed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nas_blockout.plugins.choices import NotAllowed, allowing
from nas_blockout.settings_fields import PlainMapping
from nas_blockout.testing import LossCase, loss_laws
from nas_blockout.training import LOSSES, Loss, TrainingSettings, resolved
from nas_blockout.training.losses import CrossEntropySettings
from nas_blockout.training.precision import CompiledLoss
from nas_blockout.training.recipes.criterion import CrossEntropy, MeanLoss, criterion_of
from nas_blockout.training_protocol import trainable

EXAMPLE = Path(__file__).parents[3] / "docs/guides/examples/plugin/src/example_plugin/focal_loss.py"
NAME = f"{EXAMPLE}:FOCAL"
LAWS = loss_laws(LossCase(LOSSES["cross_entropy"], CrossEntropySettings()))
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
MIXED = 0.6 * F.one_hot(LABELS, 3).float() + 0.4 * F.one_hot(LABELS.roll(1), 3).float()


class Linear(nn.Module):
    """A network of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, generator: object = None) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits


def focal(gamma: float, **others: Any) -> TrainingSettings:
    return TrainingSettings(loss=NAME, loss_options=PlainMapping({"gamma": gamma}), **others)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_cross_entropy_keeps_the_laws_of_losses(law: Callable[[], None]) -> None:
    law()


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (lambda settings, z, q: F.cross_entropy(z, q), "every_image_has_a_loss"),
        (lambda settings, z, q: F.cross_entropy(z - z.mean(0), q, reduction="none"), "the_loss_of_an_image_depends_on"),
        (lambda settings, z, q: -(q * z.softmax(1).log()).sum(1), "every_image_has_a_loss"),
        (lambda settings, z, q: -F.cross_entropy(z, q, reduction="none").detach() + 0 * z.sum(1), "gradients_are_fini"),
        (lambda settings, z, q: F.cross_entropy(z + torch.randn(3, 1)[:1], q, reduction="none"), "the_loss_draws"),
    ],
)
def test_a_loss_that_breaks_a_law_is_found(broken: Callable[..., torch.Tensor], law: str) -> None:
    laws = loss_laws(LossCase(Loss(CrossEntropySettings, broken), CrossEntropySettings()))
    (name,) = [name for name in laws if name.startswith(law)]
    with pytest.raises(AssertionError):
        laws[name]()


@pytest.mark.parametrize("target", [LABELS, MIXED], ids=["labels", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_of_exponent_zero_it_is_cross_entropy_whatever_the_settings_of_the_training(
    target: torch.Tensor, smoothing: float
) -> None:
    criterion = criterion_of(focal(0, label_smoothing=smoothing), None, device="cpu")
    assert isinstance(criterion, MeanLoss)
    torch.testing.assert_close(criterion(LOGITS, target), CrossEntropy(smoothing)(LOGITS, target))


def test_classes_are_weighted_as_in_cross_entropy() -> None:
    counts = (3, 2, 1)
    own, plain = (
        criterion_of(settings, counts, device="cpu")
        for settings in (focal(0, class_weights="balanced"), TrainingSettings(class_weights="balanced"))
    )
    assert own is not None
    assert plain is not None
    torch.testing.assert_close(own(LOGITS, LABELS), plain(LOGITS, LABELS))
    weights = MIXED @ torch.tensor([6 / 9, 1.0, 2.0])
    expected = (weights * F.cross_entropy(LOGITS, MIXED, reduction="none")).mean()
    torch.testing.assert_close(own(LOGITS, MIXED), expected)


def test_its_exponent_counts() -> None:
    criterion = criterion_of(focal(2), None, device="cpu")
    assert criterion is not None
    p = LOGITS.softmax(1)[torch.arange(6), LABELS]
    torch.testing.assert_close(criterion(LOGITS, LABELS), (-((1 - p) ** 2) * p.log()).mean())


def test_it_is_compiled_without_a_break_and_computed_in_float32() -> None:
    model = trainable(Linear())
    criterion = criterion_of(focal(2, label_smoothing=0.1), None, device="cpu")
    assert criterion is not None
    model.criterion = criterion
    x, generator = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.Generator()
    compiled = CompiledLoss(model, torch.device("cpu"), "float32", backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, LABELS, generator), model.loss(x, LABELS, generator))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(x, LABELS, generator).dtype == torch.float32


def test_what_returns_no_number_an_image_is_named() -> None:
    criterion = MeanLoss("mine", lambda settings, z, q: F.cross_entropy(z, q), None)
    with pytest.raises(ValueError, match=r"the loss mine must return one number for each of 6 images, got .* \(\)"):
        criterion(LOGITS, LABELS)


def test_settings_are_resolved_with_their_defaults() -> None:
    assert resolved(TrainingSettings(loss=NAME)).loss_options.to_json() == {"gamma": 2.0}
    assert resolved(TrainingSettings()) == TrainingSettings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "cross_entrop"},
            "loss must be one of cross_entropy, got 'cross_entrop'; did you mean",
        ),
        (
            {"loss_options": PlainMapping({"gamma": 1})},
            "loss_options are the settings of a plug-in, got {'gamma': 1}",
        ),
        (
            {"loss": NAME, "loss_options": PlainMapping({"gama": 1})},
            "training.loss_options.gama: no such setting",
        ),
        ({"loss": NAME, "loss_options": PlainMapping({"gamma": -1})}, r"gamma must be in \[0, 10\], got gamma=-1"),
        ({"loss": f"{EXAMPLE}:FocalSettings"}, r"it must be a nas_blockout\.training\.Loss, with its settings"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(replace(TrainingSettings(), **changes))


def test_one_that_is_not_allowed_is_not_imported() -> None:
    with allowing(lambda origin: False), pytest.raises(NotAllowed, match="is not allowed here, and was not imported"):
        criterion_of(focal(1), None, device="cpu")
