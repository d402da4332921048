"""What makes late layers branch: initial P by depth, and the penalty on clusters that share their nodes."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.data import load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.memberships.description import shared_pairs
from nas_blockout.networks import Connection
from nas_blockout.structure.branching import structure_of


class Chain(nn.Module):
    """Four linear layers: five layers of nodes with memberships."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def masked(**changes: Any) -> Blockout:
    network = Chain()
    weights = [Connection.of(network, f"layers.{i}.weight", f"nodes {i}", f"nodes {i + 1}") for i in range(4)]
    return Blockout(network, weights, BlockoutSettings(**{"clusters": 3, "logit_noise": 0.0, **changes}))


def test_shared_pairs_are_counted_as_by_loops() -> None:
    p = torch.rand(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = list(itertools.combinations(range(4), 2))
    expected = sum(float(row[a] * row[b]) for row in p for a, b in pairs) / (7 * len(pairs))
    assert float(shared_pairs(p)) == pytest.approx(expected, abs=1e-12)
    assert float(shared_pairs(torch.eye(4))) == 0
    assert float(shared_pairs(torch.ones(5, 4))) == 1


def test_initial_p_falls_late_where_the_exponent_is_large() -> None:
    def means(exponent: float) -> list[float]:
        model = masked(first_probability=0.9, last_probability=0.5, depth_exponent=exponent)
        return [float(p.detach().mean()) for p in model.probabilities().values()]

    assert means(1.0) == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5], abs=1e-6)
    assert means(2.0) == pytest.approx([0.9 - 0.4 * (i / 4) ** 2 for i in range(5)], abs=1e-6)


def test_disjointness_penalizes_shared_pairs_by_depth() -> None:
    model = masked(disjointness=2.0, depth_exponent=3.0, cost_penalty=0.0, polarization=0.0)
    weights = [(i / 4) ** 3 for i in range(5)]
    p: list[Tensor] = list(model.probabilities().values())
    expected = 2.0 * sum(w * float(shared_pairs(q.detach())) for w, q in zip(weights, p, strict=True)) / sum(weights)
    penalty = model.penalty()
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)
    penalty.backward()  # type: ignore[no-untyped-call]
    gradients = [float(model.logits[name].grad.abs().max()) for name in model.layers]  # type: ignore[union-attr]
    assert gradients[0] == 0 < gradients[1] < gradients[4]
    model.prepare_epoch(0, 10)
    assert float(model.penalty().detach()) == 0  # it sets in as the other terms do


def test_a_single_cluster_has_nothing_to_share() -> None:
    assert float(masked(clusters=1, disjointness=2.0, cost_penalty=0.0, polarization=0.0).penalty().detach()) == 0


def test_the_preset_branch_divides_layers_that_compress_hardly_divides() -> None:
    def densities(preset: str) -> list[float]:
        document = {
            "data": {"name": "digits", "train_samples": 100},
            "backbone": {"name": "convnet", "channels": [8, 16], "hidden": [32], "normalize_logits": True},
            "training": {"epochs": 16, "batch_size": 16, "learning_rate": 0.004},
            "method": {"name": "blockout", "preset": preset},
            "distillation": {"target_macs": 0.5, "draws": 1},
        }
        experiment = Experiment.from_json(document)
        run = Run(experiment, load(experiment.data))
        list(run)
        assert run.outcome is not None
        assert run.outcome.derivation is not None
        return sorted(layer.density for layer in structure_of(run.outcome.derivation.architecture).layers)

    branch, compress = densities("branch"), densities("compress")
    assert branch[1] < 0.95
    assert branch[0] < compress[0] - 0.1
