"""The proof of equality in its strong form: against the memberships as they were thresholded, with nothing cleaned up.

Networks are calibrated under the masks first: with random weights a signal dies on its way, and networks that compute
nothing are equal for nothing.
"""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, Stage, macs_of
from nas_blockout.backbones.inference_cost import Operations
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.distill import (
    TOLERANCE,
    Distilled,
    Learned,
    distill,
    harden,
    logits_of_both,
    logits_under,
    network_of,
    transplant,
)

CASES = int(os.environ.get("NAS_BLOCKOUT_MEMBERSHIPS", "300"))
CHANNELS, CLASSES = 2, 5
SPREAD = 1e-4  # of logits over images: less, and a network computes nothing

Memberships = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A learned network in float64, its P, the memberships that a threshold makes of it, and images."""

    learned: Learned
    probabilities: Memberships
    hard: Memberships
    images: Tensor

    @property
    def memberships(self) -> Memberships:
        """The memberships as numbers."""
        return {name: value.double() for name, value in self.hard.items()}

    def branched(self, found: Distilled) -> BranchedNetwork:
        """The branched network of a structure, with weights of its own."""
        dense = network_of(self.learned)
        normalize = dense.normalize_logits is not None
        network = BranchedNetwork(dense.plan, found.architecture, channels=CHANNELS, normalize_logits=normalize)
        return network.double().eval()


def plan_of(draw: random.Random, side: int) -> tuple[Stage, ...]:
    """A chain of stages: convolutions that pad, of several sizes, pooled or not; then fully connected layers."""
    plan = []
    for number in range(draw.randint(1, 4)):
        kernel, pool = draw.choice((1, 3, 3, 5)), draw.choice((1, 2)) if side >= 4 else 1
        plan.append(Stage(f"conv{number}", "convolution", draw.randint(3, 10), kernel=kernel, pool=pool))
        side //= pool
    plan[-1] = replace(plan[-1], pool=0)
    plan += [Stage(f"hidden{number}", "linear", draw.randint(3, 10)) for number in range(draw.randint(0, 3))]
    return (*plan, Stage("classes", "linear", CLASSES, activation=False))


def learned_network(plan: tuple[Stage, ...], seed: int, *, clusters: int, masked: str, normalize: bool) -> Blockout:
    """A network in float64 whose weights, biases, statistics and memberships are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = BranchedNetwork(plan, dense_of(plan), channels=CHANNELS, normalize_logits=normalize)
        settings = replace(PAPER, clusters=clusters, masked=masked, rescale=False)  # type: ignore[arg-type]
        model = Blockout(dense, dense.connections, settings).double().eval()
        for name, tensor in dense.named_parameters():
            if tensor.dim() == 1:
                bounds = (0.5, 1.5) if "normalize.weight" in name else (-0.2, 1.0)
                nn.init.uniform_(tensor, *bounds)
    return model


@torch.no_grad()
def calibrate(learned: Learned, hard: Mapping[str, Tensor], images: Tensor, seed: int) -> None:
    """Set the statistics of normalization near those under the masks, and then move each by a random amount."""
    network, generator = network_of(learned), torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    logits_under(learned, images, hard)
    network.eval()
    for norm in norms:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        moved = torch.rand(len(mean), generator=generator, dtype=torch.float64)
        mean += (moved - 0.5) * var.sqrt() + 0.1 * (moved > 0.5)
        var.copy_((var + 0.01) * (0.5 + torch.rand(len(var), generator=generator, dtype=torch.float64)))


@cache
def case_of(seed: int) -> Case:
    """A random network, its layers from few to nearly all memberships; every sixth is masked like a pruned one."""
    draw = random.Random(seed)
    side = draw.choice((5, 6, 8, 9))
    plan = plan_of(draw, side)
    clusters = min(draw.randint(1, 8), min(stage.width for stage in plan))
    model = learned_network(
        plan, seed, clusters=clusters, masked=draw.choice(("head", "all")), normalize=draw.random() < 0.5
    )
    generator = torch.Generator().manual_seed(seed)
    for value in model.logits.values():
        prior, spread = draw.uniform(-2.2, 2), draw.uniform(0.3, 3)  # of each layer: some sparse, some dense
        value.data.copy_(prior + spread * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    p = {name: value.detach() for name, value in model.probabilities().items()}
    hard = harden(p, draw.uniform(0.2, 0.8))
    learned = network_of(model) if seed % 6 == 0 else model
    images = torch.randn(8, CHANNELS, side, side, generator=generator, dtype=torch.float64)
    calibrate(learned, {name: value.double() for name, value in hard.items()}, images, seed)
    return Case(learned, p, hard, images)


def exact(case: Case) -> Distilled:
    return distill(case.probabilities, case.hard, clean_up=False)


def difference(case: Case, found: Distilled, dtype: torch.dtype = torch.float64, *, training: bool = False) -> float:
    """Largest difference to the masked network under the raw memberships."""
    masked, branched = logits_of_both(
        case.learned, found, case.branched(found), case.images.to(dtype), hard=case.memberships, training=training
    )
    return float((masked - branched).abs().max())


def spread_of(case: Case) -> float:
    """How far the logits of the masked network spread over the images."""
    with torch.no_grad():
        logits = logits_under(case.learned, case.images, case.memberships)
    return float((logits.amax(0) - logits.amin(0)).max())


def image_arrives(hard: Mapping[str, Tensor]) -> bool:
    """Whether there is a path from the image to a class."""
    first, *others = hard.values()
    reached = first.any(1)
    for before, after in pairwise((first, *others)):
        reached = (after.double() @ before[reached].double().T > 0).any(1)
    return bool(reached.any())


def constants(architecture: Architecture) -> int:
    return sum(group.width for layer in architecture.layers for group in layer.groups if group.constant)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_branched_networks_equal_masked_ones_under_raw_memberships(dtype: torch.dtype) -> None:
    worst = max(difference(case_of(seed), exact(case_of(seed)), dtype) for seed in range(CASES))
    assert worst <= TOLERANCE[dtype]


def test_they_are_equal_in_training_as_well() -> None:
    worst = max(difference(case_of(seed), exact(case_of(seed)), training=True) for seed in range(CASES))
    assert worst <= TOLERANCE[torch.float64]


def test_the_proof_is_not_of_networks_that_compute_nothing() -> None:
    cases = [case_of(seed) for seed in range(CASES)]
    alive = [case for case in cases if spread_of(case) > SPREAD]
    cut = [case for case in cases if not image_arrives(case.hard)]
    assert len(alive) >= 0.6 * CASES
    assert all(spread_of(case) < 1e-12 for case in cut), "no image arrives"
    assert len(alive) + len(cut) >= 0.9 * CASES, "the others, whose signal died on its way, are few"
    with_constants = [case for case in alive if constants(exact(case).architecture)]
    assert len(with_constants) >= 0.1 * CASES, "constants occur where there is something to disturb"


def test_the_clean_up_changes_what_is_computed() -> None:
    """The negative control: the comparison does see nodes that read nothing."""
    differences, same = [], 0
    for seed in range(CASES):
        case = case_of(seed)
        found = distill(case.probabilities, case.hard)
        assert not constants(found.architecture)
        if constants(exact(case).architecture):
            differences.append(difference(case, found))
        else:
            same += 1
            assert difference(case, found) <= TOLERANCE[torch.float64], "there was nothing to clean up"
    assert same >= 0.4 * CASES
    assert sum(each > SPREAD for each in differences) >= 0.25 * CASES


def test_a_constant_that_is_a_little_off_is_seen() -> None:
    seed = next(seed for seed in range(CASES) if spread_of(case_of(seed)) > SPREAD and _early(case_of(seed)))
    case = case_of(seed)
    found = exact(case)
    branched = case.branched(found)
    transplant(case.learned, found, branched)
    with torch.no_grad():
        expected = logits_under(case.learned, case.images, case.memberships)
        for index, stage in enumerate(list(branched.stages.values())[:-1]):
            groups = branched.full.layers[index].groups
            if any(group.constant for group in groups):
                stage.normalize.bias += 1e-3  # type: ignore[union-attr]
        assert float((branched(case.images) - expected).abs().max()) > 1e-7


def _early(case: Case) -> bool:
    layers = exact(case).architecture.layers[:-1]
    return any(group.constant and group.clusters for layer in layers for group in layer.groups)


@pytest.mark.parametrize("operations", get_args(Operations))
def test_forms_that_are_only_run_equal_the_masked_network_too(operations: Operations) -> None:
    for seed in range(CASES // 3):
        case = case_of(seed)
        found = exact(case)
        branched = case.branched(found)
        transplant(case.learned, found, branched)
        with torch.no_grad():
            expected = logits_under(case.learned, case.images, case.memberships)
            run = branched.for_inference(operations=operations)(case.images)
        assert float((run - expected).abs().max()) <= TOLERANCE[torch.float64]


def test_constants_cost_no_macs_and_survive_json() -> None:
    for seed in range(CASES):
        case = case_of(seed)
        found, plan = exact(case).architecture, network_of(case.learned).plan
        assert Architecture.from_json(found.to_json()) == found
        network = case.branched(exact(case))
        weights = [w for name, w in network.named_parameters() if "operations" in name and name.endswith("weight")]
        macs = sum(weight.numel() for weight in weights)  # every stage of these plans counts one position
        assert macs == macs_of(found, plan, CHANNELS)
        assert macs <= macs_of(dense_of(plan), plan, CHANNELS)


PLAN = (
    Stage("conv1", "convolution", 4, kernel=3, pool=2),
    Stage("conv2", "convolution", 4, kernel=3, pool=1),
    Stage("features", "convolution", 4, kernel=3, pool=0),
    Stage("hidden", "linear", 4),
    Stage("classes", "linear", CLASSES, activation=False),
)


def given_case(rows: Mapping[str, list[list[int]]], *, normalize: bool = False, seed: int = 0) -> Case:
    """A case with the memberships that are said; every other node belongs to both clusters."""
    hard = {stage.name: torch.ones(stage.width, 2, dtype=torch.bool) for stage in PLAN}
    hard |= {name: torch.tensor(value, dtype=torch.bool) for name, value in rows.items()}
    model = learned_network(PLAN, seed, clusters=2, masked="all", normalize=normalize)
    generator = torch.Generator().manual_seed(seed)
    p = {name: torch.rand(value.shape, generator=generator, dtype=torch.float64) for name, value in hard.items()}
    images = torch.randn(8, CHANNELS, 7, 7, generator=generator, dtype=torch.float64)
    calibrate(model, {name: value.double() for name, value in hard.items()}, images, seed)
    return Case(model, p, hard, images)


NONE, FIRST, SECOND = [0, 0], [1, 0], [0, 1]
EXTREMES = {
    "all memberships": {},
    "no memberships at all": {stage.name: [NONE] * stage.width for stage in PLAN},
    "a layer without memberships": {"conv2": [NONE] * 4},
    "a first layer without memberships": {"conv1": [NONE] * 4},
    "layers that share nothing": {"conv2": [FIRST] * 4, "features": [SECOND] * 4},
    "a class without clusters": {"classes": [NONE, FIRST, SECOND, FIRST, FIRST]},
    "no class with clusters": {"classes": [NONE] * CLASSES},
    "a class that reads nothing": {"hidden": [FIRST] * 4, "classes": [SECOND, FIRST, FIRST, FIRST, FIRST]},
    "constants under padding": {"conv1": [FIRST] * 4, "conv2": [FIRST, FIRST, SECOND, [1, 1]]},
    "only constants are read": {
        "conv1": [FIRST] * 4,
        "conv2": [FIRST, FIRST, SECOND, SECOND],
        "features": [SECOND, SECOND, FIRST, FIRST],
        "hidden": [SECOND] * 4,
    },
    "constants before the classes": {"features": [FIRST] * 4, "hidden": [FIRST, SECOND, SECOND, NONE]},
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rows", EXTREMES.values(), ids=EXTREMES)
def test_extreme_memberships(rows: Mapping[str, list[list[int]]], normalize: bool) -> None:
    case = given_case(rows, normalize=normalize)
    found = exact(case)
    for training in (False, True):
        assert difference(case, found, training=training) <= TOLERANCE[torch.float64]
    assert difference(case, found, torch.float32) <= TOLERANCE[torch.float32]
    assert Architecture.from_json(found.architecture.to_json()).hash == found.architecture.hash
    assert spread_of(case) > SPREAD or not image_arrives(case.hard)
    for operations in get_args(Operations):
        branched = case.branched(found)
        transplant(case.learned, found, branched)
        with torch.no_grad():
            expected = logits_under(case.learned, case.images, case.memberships)
            run = branched.for_inference(operations=operations)(case.images)
        assert float((run - expected).abs().max()) <= TOLERANCE[torch.float64], operations


def test_what_reads_nothing_becomes_a_constant_group() -> None:
    case = given_case({"conv1": [FIRST] * 4, "conv2": [FIRST, FIRST, SECOND, [1, 1]]})
    layer = exact(case).architecture.layers[1]
    assert [(group.clusters, group.width, group.constant) for group in layer.groups] == [
        ((0,), 2, False),
        ((0, 1), 1, False),
        ((1,), 1, True),
    ]
    assert exact(case).architecture.reads(1) == ((0,), (0,), ())


def test_without_a_path_to_the_classes_one_node_of_each_layer_is_left() -> None:
    case = given_case({"conv2": [FIRST] * 4, "features": [SECOND] * 4})
    found = exact(case)
    layers = found.architecture.layers
    assert [(layer.width, all(group.constant for group in layer.groups)) for layer in layers[:3]] == [
        (1, True),
        (1, True),
        (4, True),
    ]
    assert int(found.nodes["conv2"][0]) == int(case.probabilities["conv2"].amax(1).argmax())
