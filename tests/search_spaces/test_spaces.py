"""The search spaces: what they propose is valid, replays from its record, and stays within the dense cost."""

from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_blockout.backbones import dense_of, stages_of
from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.experiment import Experiment
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDropSettings, Estimator, Policy
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from search_spaces import SPACES, Context, Recorded, compose, require_fit
from search_spaces.branched import Hierarchy, hierarchical

optuna.logging.set_verbosity(optuna.logging.WARNING)
SHAPE, CLASSES = (1, 8, 8), 10
BACKBONE = ConvNetSettings((16, 24), (20,))
SMALL = ModuleSettings("tests/fixtures/networks.py:Small", {"width": 6})
BASES = {
    "training": Experiment(backbone=BACKBONE),
    "blockdrop": Experiment(backbone=ResNetSettings(depth=14), method=BlockDropSettings()),
    "branched": Experiment(backbone=BACKBONE),
    "blockout": Experiment(backbone=BACKBONE, method=BlockoutSettings()),
    "structure": Experiment(backbone=BACKBONE, method=BlockoutSettings()),
    "confusion": Experiment(backbone=BACKBONE, confusion=ConfusionSettings()),
    "darts": Experiment(backbone=BACKBONE, method=METHODS["darts"].settings()),
    "regularizers": Experiment(backbone=BACKBONE, method=METHODS["dropout"].settings()),
    "light_regularizers": Experiment(backbone=BACKBONE, method=METHODS["dropblock"].settings()),
}


def sampled(name: str, seed: int) -> tuple[Experiment, dict[str, object]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return SPACES[name](trial, Context(BASES[name], SHAPE, CLASSES)), trial.params


@pytest.mark.parametrize("name", sorted(SPACES))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_proposals_are_valid_and_replay_from_their_record(name: str, seed: int) -> None:
    experiment, parameters = sampled(name, seed)
    again = SPACES[name](Recorded(parameters), Context(BASES[name], SHAPE, CLASSES))  # type: ignore[arg-type]
    assert again == experiment
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert parameters


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_fixed_hierarchies_can_be_built_and_cost_at_most_the_dense_network(seed: int) -> None:
    architecture = sampled("branched", seed)[0].architecture
    assert architecture is not None
    stages = stages_of(BACKBONE, SHAPE, CLASSES)
    assert not architecture.is_dense
    assert macs_of(architecture, stages, 1) < macs_of(dense_of(stages), stages, 1)
    assert [layer.width for layer in architecture.layers] == [stage.width for stage in stages]
    BranchedNetwork(stages, architecture, channels=1)


def test_a_hierarchy_worked_by_hand() -> None:
    stages = stages_of(BACKBONE, SHAPE, CLASSES)
    found = hierarchical(
        Hierarchy(first_split=1, branches=2, splits_again=True, skew=1.0, shared=0.0, assignment=0), stages
    )
    groups = {layer.name: [(group.clusters, group.width) for group in layer.groups] for layer in found.layers}
    assert groups["conv1"] == [((0, 1, 2, 3), 16)]
    assert groups["features"] == [((0, 1), 8), ((2, 3), 16)]  # shares 1 : 2 of 24
    assert groups["hidden"] == [((0,), 2), ((1,), 4), ((2,), 6), ((3,), 8)]  # shares 1 : 2 : 3 : 4 of 20
    assert sorted(width for _, width in groups["classes"]) == [2, 2, 3, 3]


def test_spaces_compose_in_turn() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    space = compose([SPACES["training"], SPACES["branched"]])
    experiment = space(trial, Context(BASES["branched"], SHAPE, CLASSES))
    assert experiment.architecture is not None
    assert experiment.training != BASES["branched"].training
    assert {name.split(".")[0] for name in trial.params} == {"optim", "branched"}


@pytest.mark.parametrize(
    ("name", "base"),
    [(name, "training") for name in ("regularizers", "light_regularizers", "blockdrop", "blockout", "structure")],
)
def test_a_space_refuses_an_arm_that_it_does_not_fit(name: str, base: str) -> None:
    with pytest.raises(ValueError, match=f"the space '{name}' needs"):
        SPACES[name](Recorded({}), Context(BASES[base], SHAPE, CLASSES))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_blockout_varies_clusters_widths_and_mode_within_what_can_be_built(seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    narrow = replace(BASES["blockout"], backbone=ConvNetSettings((16, 24), (5,)))
    found = SPACES["blockout"](study.ask(), Context(narrow, SHAPE, CLASSES))
    narrowest = min(stage.width for stage in stages_of(found.backbone, SHAPE, CLASSES))
    assert isinstance(found.method, BlockoutSettings)
    assert 2 <= found.method.clusters <= narrowest <= 8
    assert 8 <= found.backbone.channels[0] <= 24


@pytest.mark.parametrize("policy", ["all", "first", "random", "spread"])
def test_blockdrop_is_refused_for_a_policy_that_learns_nothing(policy: Policy) -> None:
    fixed = replace(BASES["blockdrop"], method=BlockDropSettings(policy=policy))
    with pytest.raises(ValueError, match=r"the space 'blockdrop' needs .* with the policy learned or static"):
        require_fit([SPACES["blockdrop"]], Context(fixed, SHAPE, CLASSES))


@pytest.mark.parametrize(("estimator", "own"), [("reinforce", {"penalty", "alpha"}), ("gumbel", {"cost_penalty"})])
def test_blockdrop_varies_what_its_estimator_reads(estimator: Estimator, own: set[str]) -> None:
    trial = optuna.create_study().ask()
    base = replace(BASES["blockdrop"], method=BlockDropSettings(policy="static", estimator=estimator))
    SPACES["blockdrop"](trial, Context(base, SHAPE, CLASSES))
    assert {name.removeprefix("blockdrop.") for name in trial.params} == own | {"policy_lr_multiplier", "initial_keep"}


def test_a_structure_that_is_distilled_is_one_that_was_learned() -> None:
    distilled = replace(BASES["blockout"], distillation=DistillationSettings())

    def modes(base: Experiment) -> list[object]:
        trial = optuna.create_study().ask()
        SPACES["blockout"](trial, Context(base, SHAPE, CLASSES))
        return list(trial.distributions["blockout.mode"].choices)  # type: ignore[attr-defined]

    assert modes(distilled) == ["hard-learned", "soft-learned"]
    assert modes(BASES["blockout"]) == ["hard-learned", "soft-learned", "hard-fixed"]


def test_a_backbone_without_one_width_keeps_its_widths() -> None:
    trial = optuna.create_study().ask()
    base = replace(BASES["blockout"], backbone=ResNetSettings())
    assert SPACES["blockout"](trial, Context(base, SHAPE, CLASSES)).backbone == base.backbone
    assert "model.width" not in trial.params


def test_branches_need_classes_and_nodes_to_divide() -> None:
    with pytest.raises(ValueError, match="needs 4 classes or more, got 3"):
        SPACES["branched"](Recorded({}), Context(BASES["branched"], SHAPE, 3))
    narrow = replace(BASES["branched"], backbone=ConvNetSettings((16, 24), (7,)))
    with pytest.raises(ValueError, match="needs 8 nodes a layer or more, got 7"):
        SPACES["branched"](Recorded({}), Context(narrow, SHAPE, CLASSES))
    thin = replace(narrow, backbone=ResNetSettings(depth=8, width=1 / 16))
    with pytest.raises(ValueError, match="needs layers of 8 nodes or more that may be divided"):
        SPACES["branched"](Recorded({}), Context(thin, SHAPE, CLASSES))


@pytest.mark.parametrize(
    ("backbone", "masked", "most"),
    [
        (ConvNetSettings((3, 3), (4, 7)), "last 2", 4),
        (ConvNetSettings((3, 3), (4, 7)), ("classes",), 7),
        (ConvNetSettings((3, 3), (4, 7)), "head", 3),
        (ResNetSettings(depth=8, hidden=(5,)), "head", 5),
        (ResNetSettings(depth=8, width=0.25), "all", 4),
        (InceptionSettings(width=0.25, hidden=(5,)), "all", 4),
        (InceptionSettings(width=0.25, hidden=(5,)), "head", 5),
        (SMALL, "all", 6),
    ],
)
def test_clusters_are_at_most_the_nodes_of_every_masked_layer(backbone: object, masked: str, most: int) -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask({})
    method = BlockoutSettings(masked=masked)
    base = replace(BASES["blockout"], backbone=backbone, method=method)
    if isinstance(backbone, ConvNetSettings):
        trial = optuna.trial.FixedTrial(  # widths as they are
            {"model.width": 1.0, "blockout.clusters": 2, "blockout.structure_lr_multiplier": 20.0}
            | {"blockout.mode": "hard-learned"}
        )
    assert SPACES["blockout"](trial, Context(base, SHAPE, CLASSES)).method.masked == masked
    assert trial.distributions["blockout.clusters"].high == most  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(SPACES))
def test_a_space_fits_the_arm_that_it_is_meant_for(name: str) -> None:
    require_fit([SPACES[name]], Context(BASES[name], SHAPE, CLASSES))


@pytest.mark.parametrize(
    ("spaces", "base", "message"),
    [
        (("blockdrop",), "training", "the space 'blockdrop' needs an arm whose method is blockdrop"),
        (("blockdrop",), "blockout", "the space 'blockdrop' needs an arm whose method is blockdrop"),
        (("structure",), "blockdrop", "the space 'structure' needs an arm whose method is blockout"),
        (("structure",), "training", "the space 'structure' needs an arm whose method is blockout"),
        (("confusion",), "training", "the space 'confusion' needs an arm with confusion"),
        (("darts",), "blockout", "the space 'darts' needs an arm whose method is darts"),
        (("branched",), "darts", "darts learns its own architecture"),
        (("branched",), "blockout", "blockout learns its own architecture"),
        (("training", "training"), "training", "two spaces give the parameter 'optim.lr' different ranges"),
        (("regularizers", "light_regularizers"), "regularizers", "'dropout.rate' different ranges"),
    ],
)
def test_spaces_that_do_not_fit_an_arm_or_each_other_are_refused_without_a_trial(
    spaces: tuple[str, ...], base: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        require_fit([SPACES[name] for name in spaces], Context(BASES[base], SHAPE, CLASSES))


def test_two_spaces_may_share_a_parameter_of_one_range() -> None:
    require_fit([SPACES["blockout"], SPACES["structure"]], Context(BASES["blockout"], SHAPE, CLASSES))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "was not recorded"),
        ({"optim.lr": 9.0, "optim.weight_decay": 1e-3}, "must be a number in"),
        ({"optim.lr": True, "optim.weight_decay": 1e-3}, "must be a number in"),
    ],
)
def test_replay_refuses_what_was_not_recorded(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPACES["training"](Recorded(parameters), Context(BASES["training"], SHAPE, CLASSES))


def test_replay_checks_whole_numbers_and_choices() -> None:
    trial = Recorded({"n": 1.5, "c": "x"})
    with pytest.raises(ValueError, match="whole number"):
        trial.suggest_int("n", 0, 3)
    with pytest.raises(ValueError, match="one of"):
        trial.suggest_categorical("c", ["a", "b"])


def test_the_center_of_the_training_space_is_the_arms_own_setting() -> None:
    base = replace(BASES["training"], training=replace(BASES["training"].training, learning_rate=0.04))
    with pytest.raises(ValueError, match=r"0\.01\.\.0\.16"):
        SPACES["training"](Recorded({"optim.lr": 1.0}), Context(base, SHAPE, CLASSES))
