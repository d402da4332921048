"""Residual and Inception networks in experiments: every method ends in what was measured, or is refused."""

import io
from dataclasses import replace

import pytest
import torch

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import BACKBONES, dense_of, scaled_to, stages_of
from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, Snapshot, build, count_macs, rebuild
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.training import TrainingSettings, evaluate, sample_passes

RESIDUAL = Experiment(
    data=DataSettings(train_samples=60, validation_samples=50),
    backbone=ResNetSettings(depth=8, width=0.25, hidden=(6,)),
    training=TrainingSettings(epochs=2, batch_size=20),
    seed=3,
)
INCEPTION = replace(RESIDUAL, backbone=InceptionSettings(width=0.03, hidden=(6,)))
DENSE = Architecture(1, (Layer("classes", (Group((0,), 10, tuple(range(10))),)),))
METHODS_OF_ONE_STAGE = sorted(name for name, method in METHODS.items() if method.site != "paths")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(RESIDUAL.data)


def finished(experiment: Experiment, splits: Splits) -> Run:
    run = Run(experiment, splits)
    for _ in run:
        pass
    return run


@pytest.mark.parametrize("experiment", [RESIDUAL, INCEPTION], ids=["resnet", "inception"])
@pytest.mark.parametrize("name", METHODS_OF_ONE_STAGE)
def test_every_method_ends_in_a_plain_network_with_what_was_measured(name, experiment, splits):
    method = PAPER if name == "blockout" else METHODS[name].settings()  # its default masks what Inception has not
    experiment = replace(experiment, method=method)
    assert Experiment.from_json(experiment.to_json()) == experiment
    run = finished(experiment, splits)
    outcome = run.outcome
    assert outcome is not None
    assert outcome.architecture is None
    assert type(outcome.model) is type(build(replace(experiment, method=RESIDUAL.method), splits))
    assert evaluate(outcome.model, run._loaders.validation).accuracy == run.records[-1].validation_accuracy
    twin = rebuild(experiment, None, splits)
    twin.load_state_dict(outcome.model.state_dict())
    assert outcome.macs == count_macs(twin.eval(), splits.train.images[:1])


def test_a_method_enters_where_it_belongs(splits):
    entered = {
        name: {type(m).__name__ for m in build(replace(RESIDUAL, method=METHODS[name].settings()), splits).modules()}
        for name in METHODS_OF_ONE_STAGE
    }
    assert "DropCluster" in entered["dropcluster"]
    assert "DropBlock" in entered["dropblock"]
    assert "SpatialDropout" in entered["spatial_dropout"]
    assert "Dropout" in entered["dropout"]
    assert "DropConnect" in entered["dropconnect"]
    assert "Blockout" in entered["blockout"]


def test_macs_of_a_residual_network_are_those_of_its_connections(splits):
    network = build(RESIDUAL, splits)
    assert isinstance(network, ResNet)
    by_hand = sum(network.get_parameter(c.weight).numel() * c.positions for c in network.connections)
    assert count_macs(network.eval(), splits.train.images[:1]) == by_hand


@pytest.mark.parametrize("mode", ["hard-learned", "hard-fixed", "soft-learned"])
@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_blockout_over_all_channels_trains_and_folds_to_what_eval_computes(mode, shortcut, splits):
    backbone = replace(RESIDUAL.backbone, shortcut=shortcut)
    method = replace(PAPER, clusters=2, masked="all", mode=mode, structure_lr_multiplier=30.0)
    experiment = replace(RESIDUAL, backbone=backbone, method=method)
    model = build(experiment, splits)
    assert isinstance(model, Blockout)
    assert {"stream1", "stream2", "features", "block1a", "block3a", "hidden", "classes"} <= set(model.layers)
    writers = [c.weight for c in model.connections if c.targets == ("stream2",)]
    assert len(writers) == (2 if shortcut == "projection" else 1)  # the residual branch, and the shortcut's weight
    first = {name: p.clone() for name, p in model.probabilities().items()}
    run = Run(experiment, splits)
    *_, last = (run.snapshot() for _ in run)
    assert run.outcome is not None
    assert run.failure is None
    model.load_state_dict(last.checkpoint.model)
    moved = {name: float((p - first[name]).detach().abs().max()) for name, p in model.probabilities().items()}
    assert all(distance > 0 for distance in moved.values()) == (mode != "hard-fixed")
    x = splits.validation.images[:20]
    torch.testing.assert_close(run.outcome.model(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_weights_that_write_to_one_stream_are_masked_by_one_membership(splits):
    backbone = ResNetSettings(depth=14, width=0.25)
    experiment = replace(RESIDUAL, backbone=backbone, method=replace(PAPER, clusters=2, masked="all", rescale=False))
    model = build(experiment, splits)
    assert isinstance(model, Blockout)
    writers = [c for c in model.connections if c.targets == ("stream1",) and c.sources]
    assert len(writers) == 2
    nodes = {name: torch.ones_like(p) for name, p in model.probabilities().items()}
    nodes["stream1"] = torch.tensor([[0.0, 0.0]] + [[1.0, 1.0]] * (len(nodes["stream1"]) - 1))
    masked = model.masked_weights(nodes)
    for connection in writers:
        assert not masked[connection.weight][0].any()
        assert masked[connection.weight][1:].any()


SKIPPING = replace(
    RESIDUAL,
    method=BlockDropSettings(pretrain_fraction=0.25, policy_fraction=0.25, blocks_per_epoch=2, policy_widths=(4,)),
    training=TrainingSettings(epochs=4, batch_size=20),
)


def test_blockdrop_ends_in_a_network_with_its_policy_whose_expected_cost_is_told(splits):
    assert Experiment.from_json(SKIPPING.to_json()) == SKIPPING
    run = finished(SKIPPING, splits)
    outcome = run.outcome
    assert outcome is not None
    assert isinstance(outcome.model, BlockDrop)
    assert [record.telemetry.get("blockdrop/controlled") for record in run.records] == [0, 2, 3, 3]
    assert run.records[-1].sample_passes == sample_passes(SKIPPING.training, len(splits.train.labels))
    assert evaluate(outcome.model, run._loaders.validation).accuracy == run.records[-1].validation_accuracy
    twin = rebuild(SKIPPING, None, splits)
    twin.load_state_dict(outcome.model.state_dict())
    each = [count_macs(twin.eval(), image[None]) for image in splits.validation.images]
    assert outcome.macs == pytest.approx(sum(each) / len(each), abs=1)
    assert outcome.parameters == sum(parameter.numel() for parameter in twin.parameters())


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_blockdrop_run_that_is_stopped_in_any_phase_goes_on_with_the_same_numbers(stop_after, splits):
    whole, begun = finished(SKIPPING, splits), Run(SKIPPING, splits)
    for _ in range(stop_after):
        next(begun)
    file = io.BytesIO()
    torch.save(begun.snapshot().to_state(), file)
    file.seek(0)
    resumed = Run(SKIPPING, splits, start=Snapshot.from_state(torch.load(file, weights_only=True)))
    for _ in resumed:
        pass
    assert [r.validation_loss for r in resumed.records] == [r.validation_loss for r in whole.records]
    assert resumed.outcome.macs == whole.outcome.macs


def test_blockdrop_without_blocks_to_skip_is_refused(splits):
    for backbone in (INCEPTION.backbone, BACKBONES["convnet"].settings()):
        with pytest.raises(ValueError, match="blockdrop needs a backbone whose blocks can be skipped, resnet; got"):
            replace(SKIPPING, backbone=backbone)
    with pytest.raises(ValueError, match=r"kept_blocks must lie in 1\.\.3"):
        build(replace(SKIPPING, method=BlockDropSettings(policy="first", kept_blocks=4)), splits)


@pytest.mark.parametrize("name", ["resnet", "inception"])
def test_stages_and_scaling_of_a_backbone_without_stages_are_refused(name):
    settings = BACKBONES[name].settings()
    with pytest.raises(ValueError, match="built from stages has some, convnet; got"):
        stages_of(settings, (1, 8, 8), 10)
    with pytest.raises(ValueError, match="no single width that can be scaled"):
        scaled_to(settings, 1000, (1, 8, 8), 10)
    with pytest.raises(ValueError, match="branches through its graph: give the architecture to an Experiment"):
        BACKBONES[name].build(settings, (1, 8, 8), 10, dense_of(_stages()), Sites())


def _stages():
    return stages_of(BACKBONES["convnet"].settings(), (1, 8, 8), 10)
