"""Whatever noise a network is trained under, it is scored as what it is once it is folded."""

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.batch_statistics import estimate_statistics, statistics_images
from nas_blockout.data import AnyPart, DataSettings, Loader, Part, Splits, load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.methods import METHODS, method_from_json
from nas_blockout.training import TrainingSettings, evaluate

SEEDS = range(4)
BOUND = 0.003  # of validation accuracy, on average over the seeds
DATA = DataSettings()  # digits: 898 images to train on, 359 to validate
SMALL = Experiment(
    DATA,
    ConvNetSettings((12, 12), (32,)),
    training=TrainingSettings(epochs=2, batch_size=50, learning_rate=0.005),
)
MODES = ("hard-learned", "hard-fixed", "soft-learned")
TRAINED: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in METHODS if name != "blockout"},
    **{f"blockout {mode}": {"name": "blockout", "preset": "paper", "mode": mode, "clusters": 3} for mode in MODES},
}


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Digits, each as it is and moved by a pixel; more to validate on, since one of 359 is a third of a point."""
    digits = load(DATA)
    train, moved = digits.train, digits.train.images.roll(1, 3)
    digits.train = joined(train, Part(moved, train.labels, train.background))
    digits.validation = joined(digits.validation, digits.test())
    return digits


def joined(first: AnyPart, second: AnyPart) -> Part:
    return Part(torch.cat((first.images, second.images)), torch.cat((first.labels, second.labels)), first.background)


def changes(experiment: Experiment, splits: Splits) -> list[float]:
    """How the validation accuracy of the folded network changes with the statistics of all training images."""
    found = []
    for seed in SEEDS:
        run = Run(replace(experiment, seed=seed), splits)
        *_, last = run
        assert run.outcome is not None
        assert last.validation_accuracy is not None
        estimate_statistics(run.outcome.model, [splits.train.images])
        validation = Loader(splits.validation, len(splits.validation))
        found.append(evaluate(run.outcome.model, validation).accuracy - last.validation_accuracy)
    return found


@pytest.mark.slow(30)  # of the file
@pytest.mark.parametrize("method", TRAINED)
def test_folding_and_all_images_for_the_statistics_change_no_score(method: str, splits: Splits) -> None:
    last = statistics_images(SMALL.training.epochs - 1, SMALL.training.epochs)
    assert last < len(splits.train), "what evaluation estimates from is only a sample of all"
    steered = METHODS[TRAINED[method]["name"]].site == "paths"
    backbone = ResNetSettings(depth=8, width=0.25) if steered else SMALL.backbone
    experiment = replace(SMALL, backbone=backbone, method=method_from_json(TRAINED[method]))
    assert abs(statistics.mean(changes(experiment, splits))) < BOUND


@pytest.mark.slow(30)  # of the file
def test_with_the_statistics_of_training_the_score_is_that_of_another_network(splits: Splits) -> None:
    method = method_from_json(TRAINED["blockout hard-fixed"])
    training = replace(SMALL.training, evaluation_statistics="running")
    found = changes(replace(SMALL, method=method, training=training), splits)
    assert statistics.mean(found) > 2 * BOUND, "the bound tells the two scores apart"
