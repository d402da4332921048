"""Random memberships of random networks through the whole distillation: not one result is invalid or unequal.

The suite tries a few; ``NAS_BLOCKOUT_MEMBERSHIPS=10000`` tries as many as it says.
"""

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, Stage, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.inference_cost import Operations
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.distill import TOLERANCE, Distilled, distill, harden, logits_under, transplant

EXAMPLES = int(os.environ.get("NAS_BLOCKOUT_MEMBERSHIPS", "40"))
CLASSES = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A network, its clusters, and how sharp and how dense its memberships are."""

    seed: int
    linear: bool
    widths: tuple[int, ...]
    clusters: int
    masked: str
    normalize: bool
    prior: float
    spread: float
    threshold: float
    min_group_size: int


CASES = st.builds(
    Case,
    seed=st.integers(0, 1_000_000),
    linear=st.booleans(),
    widths=st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple),
    clusters=st.integers(1, 6),
    masked=st.sampled_from(["head", "all"]),
    normalize=st.booleans(),
    prior=st.floats(-3, 3),
    spread=st.floats(0.1, 4),
    threshold=st.floats(0.01, 0.99),
    min_group_size=st.integers(1, 4),
)


def plan_of(case: Case) -> tuple[tuple[Stage, ...], tuple[int, ...]]:
    """The stages of a network, and the shape of its input."""
    if not case.linear:
        return stages(ConvNetSettings(case.widths[:2], case.widths[2:]), (2, 6, 6), CLASSES), (2, 6, 6)
    hidden = [Stage(f"hidden{n}", "linear", width) for n, width in enumerate(case.widths)]
    return (*hidden, Stage("classes", "linear", CLASSES, activation=False)), (4,)


def masked_network(case: Case, plan: tuple[Stage, ...], channels: int) -> Blockout:
    """A network in float64 with random weights, statistics and memberships."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        dense = BranchedNetwork(plan, dense_of(plan), channels=channels, normalize_logits=case.normalize)
        for name, tensor in (*dense.named_buffers(), *dense.named_parameters()):
            if "running" in name:
                nn.init.uniform_(tensor, 0.5, 2.0)
            elif tensor.dim() == 1:
                nn.init.uniform_(tensor, -1, 1)
        masked = "all" if case.linear else case.masked
        clusters = min(case.clusters, CLASSES, *case.widths)
        chosen = replace(PAPER, clusters=clusters, masked=masked)  # type: ignore[arg-type]
        model = Blockout(dense, dense.connections, chosen)
        for value in model.logits.values():
            nn.init.normal_(value, case.prior, case.spread)
    return model.double().eval()


def relabeled(architecture: Architecture, seed: int) -> Architecture:
    """The same network with its clusters numbered and its groups ordered otherwise."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(architecture.clusters, generator=generator).tolist()
    layers = []
    for layer in architecture.layers:
        groups = [replace(g, clusters=tuple(sorted(names[c] for c in g.clusters))) for g in layer.groups]
        order = torch.randperm(len(groups), generator=generator).tolist()
        layers.append(Layer(layer.name, tuple(groups[position] for position in order)))
    return Architecture(architecture.clusters, tuple(layers))


def check_structure(found: Distilled) -> None:
    """Every group reads something and reaches a class, and the value survives JSON and renaming."""
    architecture = found.architecture
    reached = set(range(len(architecture.layers[-1].groups)))
    for index in range(len(architecture.layers) - 1, 0, -1):
        reads = architecture.reads(index)
        assert all(reads), "every group reads something"
        reached = {source for position in reached for source in reads[position]}
        assert reached == set(range(len(architecture.layers[index - 1].groups))), "every group reaches a class"
    labels = [label for group in architecture.layers[-1].groups for label in group.classes or ()]
    assert sorted(labels) == list(range(CLASSES))
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert relabeled(architecture, 1).hash == relabeled(architecture, 2).hash == architecture.hash
    for layer, nodes in zip(architecture.layers, found.nodes.values(), strict=True):
        assert [len(held) for held in nodes] == [group.width for group in layer.groups]
    for before, after in pairwise(found.memberships.values()):
        shares = (after @ before.T > 0).any(1)
        assert bool((shares == after.any(1)).all()), "no node of the masked network that is left reads nothing"


@torch.no_grad()
def differences(model: Blockout, found: Distilled, plan: tuple[Stage, ...], x: Tensor) -> dict[str, float]:
    """Largest difference to the masked network, of the network as it is trained and as it may be run."""
    normalize = isinstance(model.network, BranchedNetwork) and model.network.normalize_logits is not None
    branched = BranchedNetwork(plan, found.architecture, channels=x.shape[1], normalize_logits=normalize)
    branched = branched.to(x.dtype).eval()
    transplant(model, found, branched)
    expected = logits_under(model, x, {name: value.to(x.dtype) for name, value in found.memberships.items()})
    forms: dict[str, nn.Module] = {"trained": branched}
    forms |= {f"run, {each}": branched.for_inference(operations=each) for each in get_args(Operations)}
    return {name: float((form(x) - expected).abs().max()) for name, form in forms.items()}


@given(CASES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_distilled_network_is_valid_and_equals_the_masked_one(case: Case) -> None:
    plan, shape = plan_of(case)
    model = masked_network(case, plan, shape[0])
    p = {name: value.detach() for name, value in model.probabilities().items()}
    found = distill(p, harden(p, case.threshold), min_group_size=case.min_group_size)
    check_structure(found)
    assert macs_of(found.architecture, plan, shape[0]) <= macs_of(dense_of(plan), plan, shape[0])
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
    for dtype, bound in TOLERANCE.items():
        for form, difference in differences(model.to(dtype), found, plan, x.to(dtype)).items():
            assert difference <= bound, f"{form} in {dtype}"
