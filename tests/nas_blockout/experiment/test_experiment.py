"""Experiments: their JSON, that a run resumes with the same numbers in every stage, that it ends in a plain network."""

import io
import re
from dataclasses import fields, replace

import pytest
import torch

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import (
    Derivation,
    Experiment,
    Run,
    Snapshot,
    build,
    count_macs,
    dense_macs,
    matched,
    paths_taken,
    rebuild,
)
from nas_blockout.experiment.derivation import derive
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings, Policy
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.distill import DistillationSettings, TrimBy
from nas_blockout.training import EpochRecord, Loaders, TrainingSettings, evaluate, sample_passes

SMALL = Experiment(
    data=DataSettings(train_samples=100, validation_samples=100),
    backbone=ConvNetSettings((6, 8), (10,)),
    training=TrainingSettings(epochs=4, batch_size=25),
    seed=3,
)
BLOCKOUT = replace(PAPER, clusters=2, masked="all", structure_lr_multiplier=30.0)
LEARNED = replace(
    SMALL,
    method=BLOCKOUT,
    distillation=DistillationSettings(target_macs=0.8),
)

OPTIONAL = ("architecture", "distillation", "pruning", "confusion", "target_macs")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(SMALL.data)


def finished(experiment: Experiment, splits: Splits, start: Snapshot | None = None) -> Run:
    run = Run(experiment, splits, start=start)
    for _ in run:
        pass
    return run


def timeless(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize("experiment", [SMALL, LEARNED, replace(SMALL, target_macs=9000)])
def test_json_round_trip_is_exact(experiment: Experiment) -> None:
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"backbone": {"name": "vgg"}}, "no such backbone 'vgg'"),
        ({"method": {"name": "blokout"}}, "no such method 'blokout'"),
        ({"training": {"epoch": 3}}, "no such setting; did you mean 'epochs'"),
        ({"distillation": {"threshold": 0.5}}, "distillation needs the method blockout"),
    ],
)
def test_documents_that_break_a_rule_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.from_json({**SMALL.to_json(), **change})


@pytest.mark.parametrize(
    "value", ["convnet", {"name": "convnet"}, ConvNetSettings, BLOCKOUT, object(), None, 1.5, True]
)
@pytest.mark.parametrize("name", [field.name for field in fields(Experiment)])
def test_a_field_of_another_type_is_refused_by_name_and_value(name: str, value: object) -> None:
    if (name, value) in [("method", BLOCKOUT), *((optional, None) for optional in OPTIONAL)]:
        assert getattr(replace(SMALL, **{name: value}), name) == value
        return
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {re.escape(repr(value))}$"):
        replace(SMALL, **{name: value})


def test_a_cost_to_scale_to_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="target_macs must be at least 1, got target_macs=0"):
        replace(SMALL, target_macs=0)


@pytest.mark.parametrize("value", ["convnet", None, 3, [1]])
@pytest.mark.parametrize("name", ["data", "backbone", "method", "training"])
def test_a_part_of_a_document_that_is_no_mapping_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a mapping.*got {re.escape(repr(value))}"):
        Experiment.from_json({**SMALL.to_json(), name: value})


@pytest.mark.parametrize("document", [None, "small", [SMALL]])
def test_a_document_that_is_no_mapping_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="experiment must be a mapping"):
        Experiment.from_json(document)  # type: ignore[arg-type]


def test_what_cannot_be_combined_is_refused() -> None:
    dense = Architecture(1, (Layer("classes", (Group((0,), 10, tuple(range(10))),)),))
    with pytest.raises(ValueError, match="learns its own architecture"):
        replace(LEARNED, architecture=dense)
    with pytest.raises(ValueError, match="at least 2 epochs"):
        replace(LEARNED, training=TrainingSettings(epochs=1))


def test_a_distilled_run_has_two_stages_that_cost_what_one_training_costs(splits: Splits) -> None:
    run = finished(LEARNED, splits)
    assert [(record.stage, record.epoch) for record in run.records] == [
        ("learn", 0),
        ("learn", 1),
        ("finetune", 2),
        ("finetune", 3),
    ]
    assert run.records[-1].sample_passes == finished(SMALL, splits).records[-1].sample_passes == 536
    assert sample_passes(SMALL.training, len(splits.train)) == 536, (
        "4 epochs of 100 images, and a third for each estimate"
    )
    assert splits.test_reads == 0


def test_the_first_stage_may_keep_its_learning_rate(splits: Splits) -> None:
    def first_stage(learn_schedule: str, **training: str) -> tuple[float, ...]:
        settings = replace(LEARNED.distillation, learn_schedule=learn_schedule)
        run = Run(replace(LEARNED, distillation=settings, training=replace(SMALL.training, **training)), splits)
        return tuple(next(run).train_loss for _ in range(2))

    assert first_stage("same") == first_stage("cosine") != first_stage("constant")
    assert first_stage("constant") == first_stage("same", schedule="constant")


@pytest.mark.parametrize("experiment", [SMALL, LEARNED], ids=["dense", "distilled"])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_run_gives_the_same_numbers(experiment: Experiment, stop_after: int, splits: Splits) -> None:
    straight = finished(experiment, splits)
    interrupted = Run(experiment, splits)
    for _ in range(stop_after):
        next(interrupted)
    file = io.BytesIO()
    torch.save(interrupted.snapshot().to_state(), file)
    file.seek(0)
    resumed = finished(experiment, splits, Snapshot.from_state(torch.load(file, weights_only=True)))
    assert timeless(resumed.records) == timeless(straight.records)
    assert resumed.outcome is not None
    assert straight.outcome is not None
    assert resumed.outcome.architecture == straight.outcome.architecture
    for ours, theirs in zip(resumed.outcome.model.parameters(), straight.outcome.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_distillation_is_proved_and_its_gap_is_reported(splits: Splits) -> None:
    outcome = finished(LEARNED, splits).outcome
    assert outcome is not None
    assert outcome.derivation is not None
    for found in outcome.derivation.equality.values():
        assert found["max_abs_difference"] <= found["bound"]
    assert set(outcome.derivation.gap) == {"soft", "drawn", "raw", "hard", "inherited"}
    assert outcome.macs <= 0.8 * dense_macs(LEARNED, splits)


def test_the_threshold_is_chosen_by_the_hard_network_on_validation_images(splits: Splits) -> None:
    def handed_over(settings: DistillationSettings) -> Derivation:
        run = finished(replace(LEARNED, distillation=settings), splits)
        assert run.records[-1].sample_passes == 536, "what is evaluated between the stages is no sample pass"
        assert run.outcome is not None
        assert run.outcome.derivation is not None
        return run.outcome.derivation

    thresholds = (0.7, 0.3, 0.5)
    chosen = handed_over(DistillationSettings(thresholds=thresholds, trim_by="probability"))
    alone = {str(each): handed_over(DistillationSettings(threshold=each)) for each in thresholds}
    assert chosen.thresholds == {name: found.gap["hard"] for name, found in alone.items()}
    best = max(thresholds, key=lambda each: (chosen.thresholds[str(each)], each))
    assert chosen.threshold == best
    assert chosen.architecture == alone[str(best)].architecture
    assert len({found.architecture.hash for found in alone.values()}) == 3, "there was something to choose"
    assert alone["0.5"].thresholds == {}
    assert Derivation.from_json(chosen.to_json()) == chosen
    assert splits.test_reads == 0


def test_only_thresholds_that_meet_the_target_are_tried(splits: Splits) -> None:
    settings = DistillationSettings(thresholds=(0.01, 0.02, 0.99), target_macs=0.5, trim_by="probability")
    outcome = finished(replace(LEARNED, distillation=settings), splits).outcome
    assert outcome is not None
    assert outcome.derivation is not None
    assert outcome.macs <= 0.5 * dense_macs(LEARNED, splits)
    assert len(outcome.derivation.thresholds) == 2, "the two lowest are raised to the same one"
    matched_to = matched(replace(LEARNED, distillation=settings), 4000, shape=splits.shape, classes=10)
    assert matched_to.distillation is not None
    assert (matched_to.distillation.thresholds, matched_to.distillation.fill_target) == ((), True)


@pytest.mark.parametrize(("trim_by", "kept"), [("magnitude", 0), ("probability", 1)])
def test_what_is_too_much_goes_by_magnitude_where_all_probabilities_say_yes(
    splits: Splits, trim_by: TrimBy, kept: int
) -> None:
    """Of a network that has learned nothing yet P says nothing; its nodes without weights go first."""
    settings = DistillationSettings(target_macs=0.6, trim_by=trim_by)
    method = replace(BLOCKOUT, clusters=1, first_probability=0.99, last_probability=0.99, logit_noise=0.1)
    experiment = replace(LEARNED, method=method, distillation=settings)
    learned = build(experiment, splits)
    assert isinstance(learned, Blockout)
    assert isinstance(learned.network, BranchedNetwork)
    idle = (1, 4)
    with torch.no_grad():
        for name, value in learned.network.named_parameters():
            if name.startswith("stages.features."):
                value[list(idle)] = 0
            elif name == "stages.hidden.operations.0.weight":
                value[:, list(idle)] = 0
    found, network = derive(experiment, learned, splits, device="cpu")
    assert macs_of(found.architecture, network.plan, splits.shape[0]) <= 0.6 * dense_macs(experiment, splits)
    rows = network.get_parameter("stages.features.operations.0.weight").flatten(1).square().sum(1)
    assert int((rows == 0).sum()) == kept
    assert all(bound["max_abs_difference"] <= bound["bound"] for bound in found.equality.values())


def test_placebo_shares_the_learning_stage_and_the_cost_but_not_the_network(splits: Splits) -> None:
    assert LEARNED.distillation is not None
    placebo = replace(LEARNED, distillation=replace(LEARNED.distillation, placebo="nodes"))
    learned, shuffled = finished(LEARNED, splits), finished(placebo, splits)
    assert timeless(learned.records[:2]) == timeless(shuffled.records[:2])
    assert learned.outcome is not None
    assert shuffled.outcome is not None
    assert learned.outcome.macs == shuffled.outcome.macs
    assert learned.records[-1].train_loss != shuffled.records[-1].train_loss


def test_without_its_branches_a_learned_network_has_one_group_a_layer_within_the_same_cost(splits: Splits) -> None:
    assert LEARNED.distillation is not None
    settings = replace(LEARNED.distillation, target_macs=0.5, trim_by="magnitude")
    learned = finished(replace(LEARNED, distillation=settings), splits)
    whole = finished(replace(LEARNED, distillation=replace(settings, placebo="unbranched")), splits)
    assert timeless(learned.records[:2]) == timeless(whole.records[:2])
    assert whole.outcome is not None
    assert whole.outcome.architecture is not None
    assert whole.outcome.architecture.is_dense
    assert whole.outcome.macs <= 0.5 * dense_macs(LEARNED, splits)
    assert whole.outcome.derivation is not None
    assert learned.outcome is not None
    assert learned.outcome.derivation is not None
    assert whole.outcome.derivation.probabilities == learned.outcome.derivation.probabilities


def test_without_its_branches_but_with_all_its_nodes_a_network_computes_what_was_learned(splits: Splits) -> None:
    experiment = replace(LEARNED, distillation=DistillationSettings(placebo="unbranched", threshold=1e-9))
    learned = build(experiment, splits)
    found, _ = derive(experiment, learned, splits, device="cpu")
    assert found.architecture.is_dense
    assert found.gap["hard"] == found.gap["soft"]
    assert all(bound["max_abs_difference"] <= bound["bound"] for bound in found.equality.values())


def test_weights_from_scratch_are_the_control(splits: Splits) -> None:
    assert LEARNED.distillation is not None
    scratch = replace(LEARNED, distillation=replace(LEARNED.distillation, weights="scratch"))
    inherited, anew = finished(LEARNED, splits).outcome, finished(scratch, splits).outcome
    assert inherited is not None
    assert anew is not None
    assert inherited.architecture == anew.architecture
    assert not torch.equal(next(inherited.model.parameters()), next(anew.model.parameters()))


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.site != "paths"))
def test_every_method_ends_in_a_plain_network_that_computes_what_was_measured(name: str, splits: Splits) -> None:
    experiment = replace(SMALL, method=METHODS[name].settings(), training=TrainingSettings(epochs=2, batch_size=25))
    run = finished(experiment, splits)
    assert run.outcome is not None
    model = run.outcome.model
    assert type(model) is BranchedNetwork
    assert not model.training
    loaders = Loaders(run._loaders.train, run._loaders.validation)
    assert evaluate(model, loaders.validation).accuracy == run.records[-1].validation_accuracy
    twin = rebuild(experiment, run.outcome.architecture, splits)
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_widths_are_scaled_to_given_macs(splits: Splits) -> None:
    wide = replace(SMALL, backbone=ConvNetSettings((32, 64), (64,)))
    target = round(0.5 * dense_macs(wide, splits))
    network = build(replace(wide, target_macs=target), splits)
    assert count_macs(network.eval(), splits.train.images[:1]) == pytest.approx(target, rel=0.02)


def test_counted_macs_equal_those_of_the_architecture(splits: Splits) -> None:
    network = build(SMALL, splits).eval()
    assert count_macs(network, splits.train.images[:1]) == dense_macs(SMALL, splits)


def test_building_depends_on_the_seed_and_leaves_global_randomness_alone(splits: Splits) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(replace(SMALL, seed=seed), splits) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(network.parameters()) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_run_that_diverges_ends_with_its_reason(splits: Splits) -> None:
    wild = replace(SMALL, training=TrainingSettings(epochs=4, batch_size=25, optimizer="sgd", learning_rate=1e30))
    run = finished(wild, splits)
    assert run.failure is not None
    assert "became" in run.failure
    assert run.outcome is None


def test_the_random_placebo_has_as_many_clusters_and_nearly_the_macs_of_the_learned_structure(splits: Splits) -> None:
    placebo = DistillationSettings(target_macs=0.6, weights="scratch", placebo="random")
    learned, drawn = (
        finished(replace(LEARNED, distillation=settings), splits).outcome
        for settings in (DistillationSettings(target_macs=0.6, weights="scratch"), placebo)
    )
    assert learned is not None
    assert drawn is not None
    assert learned.architecture is not None
    assert drawn.architecture is not None
    assert learned.architecture.hash != drawn.architecture.hash
    assert learned.architecture.clusters == drawn.architecture.clusters
    assert 0.9 <= drawn.macs / learned.macs <= 1  # the nodes of so small a network cost some per cent each


SKIPPING = Experiment(
    data=DataSettings(train_samples=60, validation_samples=60),
    backbone=ResNetSettings(depth=32, width=0.5),
    training=TrainingSettings(epochs=2, batch_size=30),
    method=BlockDropSettings(pretrain_fraction=0.5, policy_fraction=0.0),
)


@pytest.mark.parametrize("policy", ["static", "first", "random", "spread", "all"])
def test_controls_are_matched_to_what_a_learned_policy_costs(splits: Splits, policy: Policy) -> None:
    """In whole blocks, and in whole channels where all blocks are kept; the costs are those of outcomes."""
    model = build(SKIPPING, splits)
    assert isinstance(model, BlockDrop)
    flops = model.flops(splits.train.images[:1])
    macs = round((flops.policy + flops.fixed + 0.6 * sum(flops.blocks)) / 2)
    control = replace(SKIPPING, method=replace(SKIPPING.method, policy=policy))
    fitted = matched(control, macs, shape=splits.shape, classes=10)
    assert Experiment.from_json(fitted.to_json()) == fitted
    outcome = finished(fitted, splits).outcome
    assert outcome is not None
    nearest = 0.05 * macs if policy == "all" else max(flops.blocks) / 4
    assert abs(outcome.macs - macs) <= nearest
    assert isinstance(outcome.model, BlockDrop)
    taken = paths_taken(outcome.model, Loader(splits.validation, 20).batches())
    assert len(taken["paths"]) == 1
    spent = (
        taken["policy"]
        + taken["fixed"]
        + sum(cost for kept, cost in zip(taken["paths"][0], taken["blocks"], strict=True) if kept)
    )
    assert spent == outcome.macs


@pytest.mark.parametrize("share", [0.75, 0.8, 0.9, 1.1])
def test_a_network_of_all_blocks_meets_a_cost_whatever_cost_it_met_before(splits: Splits, share: float) -> None:
    """A search meets the cost of another arm's winner, then each retraining starts there and meets that of its seed."""
    backbone = ResNetSettings(depth=32, stem="imagenet")
    control = replace(SKIPPING, backbone=backbone, method=replace(SKIPPING.method, policy="all"))
    full = count_macs(build(control, splits).eval(), splits.train.images[:1])
    target = round(share * full)
    fitted = matched(control, target, shape=splits.shape, classes=10)
    assert count_macs(build(fitted, splits).eval(), splits.train.images[:1]) == pytest.approx(target, rel=0.025)
    for before in (0.5, 0.85, 1.2):
        thinner = matched(control, round(before * full), shape=splits.shape, classes=10)
        assert matched(thinner, target, shape=splits.shape, classes=10) == fitted


def test_a_random_path_is_another_one_for_every_seed(splits: Splits) -> None:
    random = replace(SKIPPING, method=replace(SKIPPING.method, policy="random", kept_blocks=7))
    x = splits.train.images[:1]
    found = {tuple(build(replace(random, seed=seed), splits).eval().decide(x)[0].tolist()) for seed in range(5)}
    assert len(found) == 5
    fixed = replace(random, method=replace(random.method, seed=3))
    assert len({tuple(build(replace(fixed, seed=n), splits).eval().decide(x)[0].tolist()) for n in range(3)}) == 1


def test_the_cost_of_a_learned_policy_cannot_be_chosen(splits: Splits) -> None:
    with pytest.raises(ValueError, match="the cost of a learned policy follows from its reward"):
        matched(SKIPPING, 1000, shape=splits.shape, classes=10)
