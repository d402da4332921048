"""The training loop: what it yields, that a resumed run gives the same numbers, and that it fails cleanly."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.training import Checkpoint, EpochRecord, Loaders, TrainingSettings, evaluate, fit, sample_passes
from nas_blockout.training_protocol import ParameterGroup, TrainableLayer, TrainableModel


class Points:
    """Two noisy clouds of points, shuffled with a generator."""

    def __init__(self, count: int = 60, batch_size: int = 16, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(count) % 2
        self.x = torch.randn(count, 4, generator=generator) + 2.0 * self.y[:, None]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for index in order.split(self.batch_size)[first:]:
            yield self.x[index], self.y[index]

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        yield self.x[torch.randperm(len(self), generator=generator)[:images]]


class Net(TrainableModel):
    """A network that draws noise in training, so that a resumed run must restore the generator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden, self.norm, self.out = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.told: list[tuple[int, int]] = []

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = torch.relu(self.norm(self.hidden(x)))
        if self.training:
            x = x * torch.bernoulli(torch.full_like(x, 0.8), generator=generator)
        return self.out(x)

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        self.told.append((epoch, epochs))

    def telemetry(self) -> dict[str, float]:
        return {"net/weight": float(self.out.weight.detach().norm())}


class Explodes(Net):
    """Its loss is not a number from the second epoch on."""

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        value = nn.functional.cross_entropy(self(x, generator), y)
        return value * float("nan") if len(self.told) > 1 else value


LOADERS = Loaders(Points(seed=0), Points(seed=1))


def records(model: nn.Module, settings: TrainingSettings, **options: object) -> list[EpochRecord]:
    return list(fit(model, LOADERS, settings, seed=5, **options))  # type: ignore[arg-type]


def without_time(record: EpochRecord) -> EpochRecord:
    return replace(record, seconds=0.0, checkpoint=None)


def test_training_learns_and_counts_its_passes() -> None:
    found = records(Net(), TrainingSettings(epochs=6, batch_size=16, learning_rate=0.02))
    assert [record.epoch for record in found] == list(range(6))
    # 60 images forward and backward, and all of them forward once more for the statistics of normalization
    assert [record.sample_passes for record in found] == [80 * n for n in range(1, 7)]
    assert sample_passes(TrainingSettings(epochs=6), 60) == 480
    assert sample_passes(TrainingSettings(epochs=6, evaluation_statistics="running"), 60) == 360
    assert sample_passes(TrainingSettings(epochs=6), 10_000) == 6 * 10_000 + 5 * 167 + 1167
    assert found[-1].validation_accuracy is not None
    assert found[-1].validation_accuracy > 0.9
    assert found[0].train_loss is not None
    assert found[-1].train_loss is not None
    assert found[-1].train_loss < found[0].train_loss
    assert found[-1].telemetry["net/weight"] != found[0].telemetry["net/weight"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_run_gives_the_same_numbers(optimizer: str, stop_after: int) -> None:
    settings = TrainingSettings(epochs=5, batch_size=16, optimizer=optimizer, learning_rate=0.02, warmup_epochs=1)  # type: ignore[arg-type]
    straight = records(Net(), settings)
    file = io.BytesIO()
    interrupted = []
    for record in fit(Net(), LOADERS, settings, seed=5):
        interrupted.append(record)
        assert record.checkpoint is not None
        torch.save(record.checkpoint.to_state(), file)
        if len(interrupted) == stop_after:
            break
        file = io.BytesIO()
    file.seek(0)
    start = Checkpoint(**torch.load(file, weights_only=True))
    resumed = [*interrupted, *records(Net(seed=99), settings, start=start)]
    assert [without_time(record) for record in resumed] == [without_time(record) for record in straight]


def test_same_seed_same_numbers_and_no_global_randomness() -> None:
    settings = TrainingSettings(epochs=2, batch_size=16)
    before = torch.get_rng_state()
    first = records(Net(), settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert [without_time(r) for r in records(Net(), settings)] == [without_time(r) for r in first]


def test_divergence_ends_the_training_with_its_reason_and_its_cost() -> None:
    found = records(Explodes(), TrainingSettings(epochs=5, batch_size=16))
    assert [record.failure for record in found] == [None, "the training loss became nan in epoch 1"]
    assert found[-1].sample_passes == 140, "two epochs, and the estimate of statistics after the first"
    assert found[-1].train_loss is None
    assert found[-1].validation_accuracy is None


def test_every_module_is_told_of_every_epoch() -> None:
    model = Net()
    records(model, TrainingSettings(epochs=3, batch_size=16))
    assert model.told == [(0, 3), (1, 3), (2, 3)]


def test_observing_layers_get_one_pass_of_held_images_in_eval_mode() -> None:
    class Observer(TrainableLayer):
        seen: ClassVar[list[tuple[int, bool]]] = []

        def prepare_epoch(self, epoch: int, epochs: int) -> None:
            self.needs_calibration = epoch == 1

        def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
            if self.needs_calibration:
                self.seen.append((len(x), self.training))
                self.needs_calibration = False
            return x

    class Observed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.observer = Observer()

        def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return super().forward(self.observer(x, generator), generator)

    model = Observed()
    records(model, TrainingSettings(epochs=3, batch_size=16))
    assert model.observer.seen == [(60, False)]


def test_cosine_falls_to_zero_and_warmup_rises() -> None:
    settings = TrainingSettings(epochs=10, batch_size=16, learning_rate=0.1, warmup_epochs=2)
    rates = [record.learning_rate for record in records(Net(), settings)]
    assert rates.index(max(rates)) == 2
    assert rates[0] < rates[1]
    assert rates[-1] < 0.003
    flat = [r.learning_rate for r in records(Net(), TrainingSettings(epochs=2, batch_size=16, schedule="constant"))]
    assert flat == [2e-3, 2e-3]


def test_evaluation_leaves_the_mode_and_the_statistics_alone() -> None:
    model = Net().train()
    before = model.norm.running_mean.clone()
    found = evaluate(model, LOADERS.validation)
    assert model.training
    assert torch.equal(model.norm.running_mean, before)
    assert found.predictions.shape == (60,)
    assert found.accuracy == pytest.approx(float((found.predictions == LOADERS.validation.y).float().mean()))  # type: ignore[attr-defined]


def test_memberships_learn_at_their_own_rate_and_do_not_decay() -> None:
    class Grouped(Net):
        def parameter_groups(self) -> list[ParameterGroup]:
            return [
                {"params": [self.out.weight], "lr_multiplier": 0.0, "weight_decay": True},
                {"params": [self.hidden.weight], "lr_multiplier": 1.0, "weight_decay": False},
            ]

    model = Grouped()
    before = model.out.weight.detach().clone(), model.hidden.weight.detach().clone()
    records(model, TrainingSettings(epochs=1, batch_size=16))
    assert torch.equal(model.out.weight, before[0])
    assert not torch.equal(model.hidden.weight, before[1])


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"learning_rate": float("nan")}, "must be a finite number"),
        ({"learning_rate": float("inf")}, "must be a finite number"),
        ({"weight_decay": -1.0}, "at least 0"),
        ({"momentum": 1.0}, r"in \[0, 1\), got momentum=1\.0"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw"),
        ({"schedule": "steps"}, "schedule must be one of"),
        ({"label_smoothing": 1.0}, r"in \[0, 1\)"),
        ({"mixup": -0.1}, "at least 0"),
        ({"accumulation": 0}, "at least 1"),
        ({"gradient_clip": 0.0}, "above 0"),
        ({"ema": 1.0}, r"in \[0, 1\)"),
        ({"schedule_milestones": (0.5, 1.0)}, r"in \(0, 1\)"),
        ({"class_weights": "balanced", "sampling": "balanced"}, "corrects the imbalance twice"),
        ({"ema": 0.9, "evaluation_statistics": "running"}, "ema needs evaluation_statistics estimated"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        TrainingSettings(**values)  # type: ignore[arg-type]


class Watching(TrainableLayer):
    """Asks for images before every epoch, and keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.shown = nn.Linear(4, 2), list[Tensor]()

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        self.needs_calibration = True

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.needs_calibration and not self.training:
            self.shown.append(x)
            self.needs_calibration = False
        return self.out(x)  # type: ignore[no-any-return]


def test_images_that_are_shown_are_drawn_from_all_and_are_the_same_in_every_epoch() -> None:
    points = Points(count=1000)
    order = points.y.argsort(stable=True)  # a folder sorted by class
    points.x, points.y = points.x[order], points.y[order]
    model = Watching()
    list(fit(model, Loaders(points, points), TrainingSettings(epochs=2), seed=0))
    first, second = model.shown
    assert torch.equal(first, second)
    second_class = (first[:, None] == points.x[points.y == 1]).all(2).any(1)
    assert 90 < int(second_class.sum()) < 166, "about half of 256"
