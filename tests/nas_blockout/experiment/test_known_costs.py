"""What is known before training of what a network will cost: the truth, or nothing."""

import pytest

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, dense_macs, known_costs, known_network
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings

BACKBONE = ConvNetSettings((6, 8), (10,))
TRAINING = TrainingSettings(epochs=2, batch_size=50)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings(train_samples=100))


def costs(experiment: Experiment, splits: Splits) -> dict[str, int]:
    return known_costs(experiment, shape=splits.shape, classes=len(splits.class_names))


@pytest.mark.parametrize(
    "experiment",
    [
        Experiment(backbone=BACKBONE, training=TRAINING),
        Experiment(backbone=BACKBONE, training=TRAINING, target_macs=5_000),
        Experiment(backbone=BACKBONE, training=TRAINING, method=METHODS["dropconnect"].settings()),
        Experiment(backbone=BACKBONE, training=TRAINING, method=PAPER),
        Experiment(backbone=ResNetSettings(), training=TrainingSettings(epochs=1, batch_size=100)),
    ],
    ids=["dense", "scaled", "dropconnect", "folded", "resnet"],
)
def test_what_is_known_before_is_what_comes_out(experiment: Experiment, splits: Splits) -> None:
    run = Run(experiment, splits)
    list(run)
    assert run.outcome is not None
    assert costs(experiment, splits) == {"parameters": run.outcome.parameters, "macs": run.outcome.macs}


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_of_a_network_with_a_target_only_the_macs_are_known(share: float, splits: Splits) -> None:
    for derivation in (
        {"method": PAPER, "distillation": DistillationSettings(target_macs=share)},
        {"pruning": PruningSettings(target_macs=share)},
    ):
        experiment = Experiment(backbone=BACKBONE, training=TRAINING, **derivation)  # type: ignore[arg-type]
        dense = dense_macs(experiment, splits)
        assert costs(experiment, splits) == {"macs": int(share * dense)}
        assert known_network(experiment, shape=splits.shape, classes=10) is None
        run = Run(experiment, splits)
        list(run)
        assert run.outcome is not None
        assert run.outcome.macs <= share * dense


def test_of_a_network_that_is_learned_without_a_target_nothing_is_known(splits: Splits) -> None:
    confusion = Experiment(backbone=BACKBONE, training=TRAINING, confusion=ConfusionSettings())
    skipping = Experiment(backbone=ResNetSettings(), method=BlockDropSettings())
    assert costs(confusion, splits) == costs(skipping, splits) == {}
