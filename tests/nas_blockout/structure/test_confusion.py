"""Branches from confusions: classes that are confused share one, nodes follow the classes that read them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, build
from nas_blockout.structure.confusion import ConfusionSettings, class_branches, memberships, soft_confusion
from nas_blockout.structure.distill import distill
from nas_blockout.structure.wiring import Wiring
from nas_blockout.training import TrainingSettings
from tests.nas_blockout.structure.graphs import Residual

BRANCHED = Experiment(
    data=DataSettings(train_samples=100, validation_samples=100),
    backbone=ConvNetSettings((6, 8), (12,)),
    training=TrainingSettings(epochs=4, batch_size=25),
    confusion=ConfusionSettings(branches=3),
    seed=3,
)
# Classes 0, 1, 2 are confused with one another, and so are 3, 4 and 5; class 2 leaks into the other group.
BLOCKS = torch.tensor(
    [
        [0.80, 0.10, 0.10, 0.00, 0.00, 0.00],
        [0.10, 0.80, 0.10, 0.00, 0.00, 0.00],
        [0.10, 0.10, 0.60, 0.20, 0.00, 0.00],
        [0.00, 0.00, 0.01, 0.79, 0.10, 0.10],
        [0.00, 0.00, 0.00, 0.10, 0.80, 0.10],
        [0.00, 0.00, 0.00, 0.10, 0.10, 0.80],
    ],
    dtype=torch.float64,
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(BRANCHED.data)


def sides(hard: Tensor) -> set[frozenset[int]]:
    return {frozenset(hard[:, branch].nonzero().flatten().tolist()) for branch in range(hard.shape[1])}


def test_soft_confusion_is_the_mean_probability_by_true_class() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 1])
    found = soft_confusion(nn.Identity(), [(logits[:1], labels[:1]), (logits[1:], labels[1:])], 2)
    p = logits.double().softmax(1)
    torch.testing.assert_close(found, torch.stack([(p[0] + p[1]) / 2, p[2]]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clustering", ["spectral", "affinity"])
def test_classes_that_are_confused_share_a_branch(clustering: str) -> None:
    settings = ConfusionSettings(clustering=clustering, branches=2)  # type: ignore[arg-type]
    assert sides(class_branches(BLOCKS, settings, seed=0)) == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


@pytest.mark.parametrize("clustering", ["spectral", "affinity"])
def test_seeds_of_63_bits_are_taken(clustering: str) -> None:
    settings = ConfusionSettings(clustering=clustering, branches=2)  # type: ignore[arg-type]
    assert sides(class_branches(BLOCKS, settings, seed=2**63 - 1)) == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


def test_a_class_joins_every_branch_that_holds_enough_of_its_probability() -> None:
    hard = class_branches(BLOCKS, ConfusionSettings(branches=2, overlap=True), seed=0)
    assert sides(hard) == {frozenset({0, 1, 2}), frozenset({2, 3, 4, 5})}  # .2 >= 1 / (5 x 2) > .01


def test_classes_that_are_never_confused_still_get_branches() -> None:
    hard = class_branches(torch.eye(6, dtype=torch.float64), ConfusionSettings(branches=2), seed=0)
    assert hard.shape == (6, 2)
    assert hard.any(0).all()
    assert hard.sum(1).eq(1).all()


def test_more_branches_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"branches must lie in 2\.\.classes, got branches=7 for 6 classes"):
        class_branches(BLOCKS, ConfusionSettings(branches=7), seed=0)


def test_nodes_follow_the_classes_that_read_them_and_the_trunk_is_shared(splits: Splits) -> None:
    network = build(replace(BRANCHED, confusion=None), splits)
    assert isinstance(network, BranchedNetwork)
    classes = torch.zeros(10, 2, dtype=torch.bool)
    classes[:5, 0] = True
    classes[5:, 1] = True
    with torch.no_grad():
        weight = network.get_parameter("stages.classes.operations.0.weight")
        weight.zero_()
        weight[:5, :6] = 1  # the first six hidden nodes are read by the first five classes, the others by the others
        weight[5:, 6:] = 1
    found = memberships(network, classes, ConfusionSettings(branches=2))
    assert found["hidden"][:, 0].tolist() == [True] * 6 + [False] * 6
    assert found["hidden"].sum(1).eq(1).all()
    assert found["conv1"].all()
    assert found["features"].all()
    deeper = memberships(network, classes, ConfusionSettings(branches=2, split_layers=3))
    assert deeper["conv1"].sum(0).tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"split_layers must lie in 1\.\.3"):
        memberships(network, classes, ConfusionSettings(branches=2, split_layers=4))


def test_a_layer_with_fewer_nodes_than_affinity_found_branches_does_not_branch(splits: Splits) -> None:
    network = build(replace(BRANCHED, confusion=None), splits)
    assert isinstance(network, BranchedNetwork)
    classes = torch.nn.functional.one_hot(torch.arange(10) % 7).bool()  # seven branches, and six nodes in conv1
    found = memberships(network, classes, ConfusionSettings(clustering="affinity", split_layers=3))
    assert found["conv1"].all()
    for name in ("features", "hidden"):
        assert found[name].sum(1).eq(1).all(), name
    with pytest.raises(ValueError, match="needs a node for each of 7 branches, 'conv1' has 6"):
        memberships(network, classes, ConfusionSettings(branches=7, split_layers=3))


@pytest.mark.parametrize(
    "settings",
    [
        ConfusionSettings(branches=3),
        ConfusionSettings(branches=3, overlap=True, split_layers=2),
        ConfusionSettings(clustering="affinity", weights="scratch"),
    ],
    ids=["disjoint", "overlapping", "affinity"],
)
def test_a_network_branches_by_confusion_at_the_cost_of_one_training(
    splits: Splits, settings: ConfusionSettings
) -> None:
    experiment = replace(BRANCHED, confusion=settings)
    assert Experiment.from_json(experiment.to_json()) == experiment
    run = Run(experiment, splits)
    records = list(run)
    assert [record.stage for record in records] == ["learn", "learn", "finetune", "finetune"]
    assert records[-1].sample_passes == 4 * (100 + 34)
    assert run.outcome is not None
    assert run.outcome.derivation is not None
    assert run.outcome.architecture is not None
    assert splits.test_reads == 0
    for found in run.outcome.derivation.equality.values():
        assert found["max_abs_difference"] <= found["bound"]
    assert set(run.outcome.derivation.gap) == {"soft", "raw", "hard", "inherited"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clustering": "kmeans"}, "clustering must be one of"),
        ({"branches": 1}, "branches must be at least 2"),
        ({"split_layers": 0}, "split_layers must be at least 1"),
        ({"weights": "none"}, "weights must be one of"),
        ({"learn_fraction": 0.0}, "learn_fraction must be in"),
        ({"finetune_lr_multiplier": -1.0}, "finetune_lr_multiplier must be above 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionSettings(**change)  # type: ignore[arg-type]


def test_in_a_graph_layers_branch_by_their_distance_from_the_classes() -> None:
    network = Residual(width=6, inner=(4, 5))
    classes = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.1)
        network.head.weight[:2, :3] = 5.0  # nodes 0 to 2 of the stream are for the first branch
        network.head.weight[2:, 3:] = 5.0
        for first in (network.first[0], network.first[1]):
            first.weight[:, :3] = 0.0  # as far as the blocks read the stream, it would be for the second
        network.second[0].weight[:3, 1:3] = 7.0  # nodes 1 and 2 of the first block are for nodes 0 to 2 of the stream
    found = memberships(network, classes, ConfusionSettings(branches=2, split_layers=1))
    assert list(found) == ["stream", "inner0", "inner1", "classes"]
    assert found["stream"].int().tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    assert found["inner0"].all()
    assert found["inner1"].all()
    deeper = memberships(network, classes, ConfusionSettings(branches=2, split_layers=2))
    assert torch.equal(deeper["stream"], found["stream"])
    assert deeper["inner0"].int().tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    assert deeper["inner1"].sum(1).tolist() == [1] * 5
    with pytest.raises(ValueError, match=r"split_layers must lie in 1\.\.2, got split_layers=3"):
        memberships(network, classes, ConfusionSettings(branches=2, split_layers=3))
    both = distill(
        {name: value.double() for name, value in deeper.items()}, deeper, wiring=Wiring.of(network), clean_up=False
    )
    assert both.architecture.sources("stream") == (None, "inner0", "inner1")


def test_found_branches_do_not_split_a_layer_of_a_graph_that_is_too_narrow() -> None:
    network = Residual(width=6, inner=(2, 5))
    classes = torch.eye(4, dtype=torch.bool)
    found = memberships(network, classes, ConfusionSettings(clustering="affinity", split_layers=2))
    assert found["stream"].sum(1).tolist() == [1] * 6
    assert found["inner0"].all()
    assert found["inner1"].all(), "it is as far from the classes as the narrow one"
