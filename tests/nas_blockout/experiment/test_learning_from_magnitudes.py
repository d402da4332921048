"""Blockout on a network that comes with weights: P starts at what the magnitudes say, and learning corrects it."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import kendalltau

from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build
from nas_blockout.export import save_weights
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.methods.memberships.description import collapse_of
from nas_blockout.settings_fields import PlainMapping
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import relative_magnitudes
from nas_blockout.training import TrainingSettings

NETWORKS = Path(__file__).parents[2] / "fixtures" / "networks.py"
FROM_MAGNITUDES = replace(
    PAPER, clusters=2, masked="all", rescale=False, first_probability=0.7, last_probability=0.7, magnitude_spread=3.0
)
EXPERIMENT = Experiment(
    DataSettings(train_samples=100, validation_samples=100),
    ModuleSettings(f"{NETWORKS}:Small"),
    training=TrainingSettings(epochs=4, batch_size=25),
    seed=3,
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(EXPERIMENT.data)


def masked(splits: Splits, **changes: object) -> Blockout:
    model = build(replace(EXPERIMENT, method=replace(FROM_MAGNITUDES, **changes)), splits)  # type: ignore[arg-type]
    assert isinstance(model, Blockout)
    return model


def test_logits_spread_as_the_logarithms_of_the_magnitudes_do(splits: Splits) -> None:
    model = masked(splits)
    found = relative_magnitudes(model.network)  # type: ignore[arg-type]
    assert found
    for name, p in model.probabilities().items():
        expected = torch.tensor(0.7).logit().expand_as(p)
        if name in found:
            logarithms = [math.log(magnitude) for magnitude in found[name].tolist()]
            mean, deviation = statistics.fmean(logarithms), statistics.pstdev(logarithms)
            spread = torch.tensor([3.0 * (value - mean) / deviation for value in logarithms])
            expected = expected + spread[:, None]
        torch.testing.assert_close(p.detach().logit(), expected, rtol=1e-4, atol=1e-4)
    assert "classes" not in found


def test_p_that_starts_at_the_cost_target_expects_it_and_keeps_the_order_of_the_magnitudes(splits: Splits) -> None:
    for share in (0.3, 0.8):
        model = masked(splits, start_at="cost_target", cost_target=share)
        p = {name: value.detach() for name, value in model.probabilities().items()}
        assert float(model.expected_macs(p)) / model.dense_macs() == pytest.approx(share, abs=1e-4)
        for name, magnitude in relative_magnitudes(model.network).items():  # type: ignore[arg-type]
            assert p[name][:, 0].argsort().tolist() == magnitude.argsort().tolist()
    last = model.layers[-1]
    torch.testing.assert_close(p[last], masked(splits).probabilities()[last].detach())


def test_a_network_that_does_not_know_its_graph_gives_the_magnitudes_of_its_weights(splits: Splits) -> None:
    backbone = InceptionSettings(width=0.125)
    method = replace(FROM_MAGNITUDES, masked="head")
    model = build(replace(EXPERIMENT, backbone=backbone, method=method), splits)
    assert isinstance(model, Blockout)
    read = next(each for each in model.connections if each.sources == (model.layers[-2],))
    written = [each for each in model.connections if each.targets == (model.layers[-2],)]
    weights = model.network.get_parameter(read.weight).detach().square().sum(0)
    for each in written:
        weights = weights + model.network.get_parameter(each.weight).detach().flatten(1).square().sum(1)
    order = model.probabilities()[model.layers[-2]][:, 0].argsort()
    assert order.tolist() == weights.argsort().tolist()


def test_magnitudes_are_required_where_p_starts_from_them(splits: Splits) -> None:
    model = masked(splits)
    with pytest.raises(ValueError, match=r"magnitudes must be given for magnitude_spread=3\.0, got none"):
        Blockout(model.network, model.connections, FROM_MAGNITUDES)


def test_the_preset_for_pretrained_networks_learns_more_than_the_magnitudes_know(
    splits: Splits, tmp_path: Path
) -> None:
    """Once every P went to one, whereupon magnitudes alone decided; the loss has to move nodes past one another."""
    backbone = ModuleSettings(f"{NETWORKS}:Small", arguments=PlainMapping({"width": 24}))
    training = TrainingSettings(epochs=8, batch_size=5, learning_rate=0.01)
    first = Run(replace(EXPERIMENT, backbone=backbone, training=training), splits)
    assert list(first)
    assert first.outcome is not None
    save_weights(first.outcome.model, tmp_path / "weights.safetensors")
    preset = METHODS["blockout"].presets["pretrained"]
    wanted = replace(
        EXPERIMENT,
        backbone=replace(backbone, weights=str(tmp_path / "weights.safetensors")),
        training=replace(training, learning_rate=0.03),
        method=replace(preset.settings, cost_target=0.5),
        distillation=DistillationSettings(target_macs=0.5, draws=1, **preset.distillation),
    )
    before = build(wanted, splits)
    assert isinstance(before, Blockout)
    known = relative_magnitudes(before.network)  # type: ignore[arg-type]
    began = {name: p.detach() for name, p in before.probabilities().items()}
    second = Run(wanted, splits)
    assert list(second)
    assert second.outcome is not None
    assert second.outcome.architecture is not None
    assert second.outcome.derivation is not None
    for name, magnitude in known.items():
        learned = torch.tensor(second.outcome.derivation.probabilities[name])
        assert collapse_of(learned) == "none"
        layer = next(each for each in second.outcome.architecture.layers if each.name == name)
        kept = {node for group in layer.groups for node in group.nodes or ()}
        assert 0 < len(kept) < len(magnitude)
        for cluster in range(2):  # .58 to .76 over four seeds; 1 where nothing is learned
            assert kendalltau(learned[:, cluster], began[name][:, cluster]).statistic < 0.9
