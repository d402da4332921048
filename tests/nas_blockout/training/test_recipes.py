"""The laws that every recipe of training keeps, one row a recipe, and what several of them do together."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.training import (
    Checkpoint,
    EpochRecord,
    Loaders,
    Saving,
    TrainingSettings,
    evaluate,
    fit,
    sample_passes,
)
from nas_blockout.training_protocol import TrainableModel

COUNTS = (40, 14, 6)
IMAGES, BATCH = sum(COUNTS), 16
RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.3},
    "cutmix": {"cutmix": 1.0},
    "mixup and cutmix": {"mixup": 0.3, "cutmix": 1.0},
    "class_weights": {"class_weights": "balanced"},
    "gradient_clip": {"gradient_clip": 0.05},
    "accumulation": {"accumulation": 3},
    "ema": {"ema": 0.8},
    "step": {"schedule": "step"},
    "linear": {"schedule": "linear", "warmup_epochs": 1.0},
    "one-cycle": {"schedule": "one-cycle"},
    "no_decay": {"no_decay": ("out.*",), "weight_decay": 0.5},
    "all": {
        "label_smoothing": 0.1,
        "mixup": 0.3,
        "cutmix": 1.0,
        "class_weights": "balanced",
        "gradient_clip": 0.5,
        "accumulation": 2,
        "ema": 0.8,
        "schedule": "one-cycle",
        "warmup_epochs": 1.0,
    },
}


class Images:
    """Noisy images of three classes of unequal size, shuffled with a generator."""

    def __init__(self, seed: int) -> None:
        self.y = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
        self.x = torch.randn(IMAGES, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        self.x += 1.5 * (self.y - 1)[:, None, None, None]

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for index in order.split(BATCH)[first:]:
            yield self.x[index], self.y[index]

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        yield self.x[torch.randperm(len(self), generator=generator)[:images]]


class Net(TrainableModel):
    """A network with a norm that draws in training, so that a resumed run must restore the generator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.norm, self.out = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        if self.training:
            x = x * torch.bernoulli(torch.full_like(x, 0.8), generator=generator)
        return self.out(x.flatten(1))  # type: ignore[no-any-return]


LOADERS = Loaders(Images(0), Images(1), COUNTS)


def settings(recipe: str, **others: Any) -> TrainingSettings:
    values = {"epochs": 4, "batch_size": BATCH, "learning_rate": 0.02, **RECIPES[recipe], **others}
    return TrainingSettings(**values)


def run(recipe: TrainingSettings, start: Checkpoint | None = None, model: nn.Module | None = None) -> list[EpochRecord]:
    return list(fit(Net() if model is None else model, LOADERS, recipe, seed=5, start=start))


def numbers(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0, checkpoint=None) for record in records]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_gives_the_same_numbers_and_the_same_network(recipe: str) -> None:
    whole = Net()
    straight = run(settings(recipe), model=whole)
    interrupted, file = [], io.BytesIO()
    for record in fit(Net(), LOADERS, settings(recipe), seed=5):
        interrupted.append(record)
        assert record.checkpoint is not None
        if len(interrupted) == 2:
            torch.save(record.checkpoint.to_state(), file)
            break
    file.seek(0)
    resumed = Net(seed=99)
    rest = run(settings(recipe), Checkpoint(**torch.load(file, weights_only=True)), resumed)
    assert numbers([*interrupted, *rest]) == numbers(straight)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_goes_on_inside_an_epoch_gives_the_same_numbers_and_the_same_network(recipe: str) -> None:
    whole, held = Net(), list[bytes]()

    def save(checkpoint: Checkpoint) -> None:
        torch.save(checkpoint.to_state(), file := io.BytesIO())
        held.append(file.getvalue())

    straight = list(fit(whole, LOADERS, settings(recipe), seed=5, saving=Saving(lambda: True, save)))
    for at in (0, 10 % len(held)):
        start = Checkpoint.from_state(torch.load(io.BytesIO(held[at]), weights_only=True))
        assert start.progress is not None
        assert start.progress.images < IMAGES
        resumed = Net(seed=99)
        rest = run(settings(recipe), start, resumed)
        assert numbers(rest) == numbers(straight[start.epochs_done :])
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_seed_same_numbers_and_no_global_randomness(recipe: str) -> None:
    before = torch.get_rng_state()
    first = numbers(run(settings(recipe)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert numbers(run(settings(recipe))) == first


@pytest.mark.parametrize("recipe", RECIPES)
def test_charges_are_exact_and_training_learns(recipe: str) -> None:
    found = run(settings(recipe, epochs=8))
    assert [record.sample_passes for record in found] == [(IMAGES + IMAGES // 3) * n for n in range(1, 9)]
    assert found[-1].sample_passes == sample_passes(settings(recipe, epochs=8), IMAGES)
    assert (found[-1].validation_accuracy or 0) > COUNTS[0] / IMAGES


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "none"])
def test_every_recipe_changes_the_training(recipe: str) -> None:
    plain = settings("none", weight_decay=settings(recipe).weight_decay)
    assert run(settings(recipe))[1].validation_loss != run(plain)[1].validation_loss


def test_the_averaged_network_is_evaluated_saved_and_left() -> None:
    model = Net()
    records = fit(model, LOADERS, settings("ema"), seed=5)
    for record in records:
        checked = evaluate(model, LOADERS.validation)
        assert (checked.loss, checked.accuracy) == (record.validation_loss, record.validation_accuracy)
        assert record.checkpoint is not None
        assert record.checkpoint.trained is not None
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in record.checkpoint.model.items())
        assert not torch.equal(record.checkpoint.trained["out.weight"], model.out.weight)
    assert torch.equal(model.state_dict()["out.weight"], record.checkpoint.model["out.weight"])  # type: ignore[union-attr]


def test_averaging_changes_no_training_step() -> None:
    """The trained weights beside an average are those of a training without one."""
    plain, averaged = Net(), run(settings("ema"))
    without = run(settings("none"), model=plain)
    assert averaged[-1].checkpoint is not None
    assert averaged[-1].checkpoint.trained is not None
    assert [record.train_loss for record in averaged] == [record.train_loss for record in without]
    for name, parameter in plain.named_parameters():
        assert torch.equal(averaged[-1].checkpoint.trained[name], parameter), name


class Linear(TrainableModel):
    """A network without norms and draws, for which batches may be divided."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.out = nn.Linear(32, 3).double()

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.out(x.flatten(1).double())  # type: ignore[no-any-return]


class Counting(torch.optim.SGD):
    """Counts its steps."""

    steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        type(self).steps += 1
        super().step(closure)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_accumulation_ends_with_the_epoch(accumulation: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images are three batches of 16 and one of 12."""
    Counting.steps = 0
    monkeypatch.setattr(torch.optim, "SGD", Counting)
    run(settings("none", optimizer="sgd", accumulation=accumulation, epochs=3))
    assert Counting.steps == 3 * steps


def test_an_accumulated_step_is_that_of_one_large_batch() -> None:
    model = Linear()
    run(settings("none", optimizer="sgd", momentum=0.0, weight_decay=0.0, accumulation=4, epochs=1), model=model)
    expected = Linear()
    loss = F.cross_entropy(expected(LOADERS.train.x), LOADERS.train.y)  # type: ignore[attr-defined]
    loss.backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            assert parameter.grad is not None
            parameter -= 0.02 * parameter.grad
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-14)


def test_the_gradient_is_clipped_as_torch_does() -> None:
    """One step without momentum: the weights move by the learning rate times the clipped gradient."""
    model, start = Linear(), Linear()
    options: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "epochs": 1}
    run(settings("none", gradient_clip=0.25, accumulation=4, **options), model=model)
    F.cross_entropy(start(LOADERS.train.x), LOADERS.train.y).backward()  # type: ignore[attr-defined]
    norm = nn.utils.clip_grad_norm_(start.parameters(), 0.25)
    assert norm > 0.5, "it is clipped"
    for found, before in zip(model.parameters(), start.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(found, before - 0.02 * before.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recipe", ["mixup", "cutmix", "class_weights"])
def test_a_recipe_that_needs_the_classes_says_so(recipe: str) -> None:
    with pytest.raises(ValueError, match=f"{recipe} needs the training images of each class"):
        list(fit(Net(), replace(LOADERS, class_counts=None), settings(recipe), seed=0))
