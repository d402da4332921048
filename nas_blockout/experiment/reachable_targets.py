"""Whether the targets of a derivation can be reached at all, which is said before anything is trained."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.experiment.config import Experiment
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.supernet.hierarchy_choices import HierarchyChoices
from nas_blockout.networks import Branchable, Connection, Network, listed
from nas_blockout.settings_fields import Conflict
from nas_blockout.structure.distill import distill
from nas_blockout.structure.wiring import Wiring


def learned_conflicts(experiment: Experiment, network: Network, masked: Sequence[Connection]) -> list[Conflict]:
    """Return why no branches can be derived from what is masked, before the first stage is paid for.

    That is so for a target that not even one node in each masked layer would meet, or a start at such a target.
    """
    with torch.device("cpu"):  # memberships have values, also where weights have none
        return list(_underivable(experiment, network, masked))


def _underivable(experiment: Experiment, network: Network, masked: Sequence[Connection]) -> Iterator[Conflict]:
    settings = experiment.distillation
    if settings is None:
        return
    assert isinstance(network, Branchable), "checked with the experiment"
    layers = [name for name in network.layers if any(name in each.layers for each in masked)]
    one = {name: (torch.arange(network.layers[name]) < 1)[:, None] for name in layers[:-1]}
    one[layers[-1]] = torch.ones(network.layers[layers[-1]], 1, dtype=torch.bool)
    try:
        wiring = None if isinstance(network, BranchedNetwork) else Wiring.of(network, masked)
        smallest = distill({name: rows.float() for name, rows in one.items()}, one, wiring=wiring, clean_up=False)
    except ValueError as error:
        yield Conflict(f"method.masked: {error}", "method.masked", "distillation", "backbone")
        return
    left = f"with one node left in each masked layer before the classes ({listed(layers[:-1])}), the other layers"
    targets: list[tuple[str, float | None, Callable[[Mapping[str, Tensor]], int]]] = [
        ("distillation.target_macs", settings.target_macs, network.macs_under),
        ("distillation.target_parameters", settings.target_parameters, network.weights_under),
    ]
    method = experiment.method
    if isinstance(method, BlockoutSettings) and method.start_at == "cost_target":
        targets.append(("method.cost_target", method.cost_target, network.macs_under))
    masks_all = isinstance(method, BlockoutSettings) and method.masked == "all"
    remedy = "raise it" if masks_all else "raise it or mask more layers"
    for key, target, count in targets:
        least = count(smallest.complete) / count({})
        if message := _unreached(target, least, left=left, remedy=remedy):
            more = _fixed(network) if count == network.macs_under else ""
            yield Conflict(f"{key}: {message}{more}", key, "method.masked", "backbone", "data")


def chosen_conflicts(experiment: Experiment, network: Branchable, choices: HierarchyChoices) -> list[Conflict]:
    """Return that not even the smallest choices of a supernet meet a target, before the first stage is paid for.

    They cost most with all branches there and every class in the widest.
    """
    settings = experiment.distillation
    if settings is None:
        return []
    targets = {
        "target_macs": (settings.target_macs, network.macs_under),
        "target_parameters": (settings.target_parameters, network.weights_under),
    }
    found = []
    with torch.device("cpu"):  # memberships have values, also where weights have none
        smallest = choices.smallest()
        for name, (target, count) in targets.items():
            least = count(smallest) / count({})
            left = "with the smallest of method.widths, all layers"
            if message := _unreached(target, least, left=left, remedy="raise it, or give smaller widths"):
                key, more = f"distillation.{name}", _fixed(network) if name == "target_macs" else ""
                found.append(
                    Conflict(f"{key}: {message}{more}", key, "method.widths", "method.branches", "backbone", "data")
                )
    return found


def pruning_conflicts(experiment: Experiment, network: Network) -> list[Conflict]:
    """Return that not even one node in each layer meets the target of pruning, before the network is trained."""
    with torch.device("cpu"):  # memberships have values, also where weights have none
        return list(_unprunable(experiment, network))


def _unprunable(experiment: Experiment, network: Network) -> Iterator[Conflict]:
    settings = experiment.pruning
    if settings is None or not isinstance(network, Branchable):
        return
    whole = {*network.rigid, list(network.layers)[-1]}
    one = {
        name: torch.ones(width, 1) if name in whole else (torch.arange(width) < 1).float()[:, None]
        for name, width in network.layers.items()
    }
    wiring = None if isinstance(network, BranchedNetwork) else Wiring.of(network, None)
    smallest = distill(one, {name: rows > 0 for name, rows in one.items()}, wiring=wiring)
    least = network.macs_under(smallest.complete) / network.macs_under({})
    left = "with one node left in each layer that can become smaller, the network"
    if message := _unreached(settings.target_macs, least, left=left, remedy="raise it"):
        key = "pruning.target_macs"
        yield Conflict(f"{key}: {message}{_fixed(network)}", key, "backbone", "data")


def _unreached(target: float | None, least: float, *, left: str, remedy: str) -> str | None:
    if target is None or target >= least:
        return None
    shown = math.ceil(least * 10_000) / 10_000  # never a value that is refused as well
    return f"{left} still cost {shown:.4f}, so it must be at least that, got {target}; {remedy}"


def _fixed(network: Branchable) -> str:
    """Return the end of an error about a cost that is not reached: the share that no mask makes smaller."""
    fixed = float(sum(macs.sum() for layer, macs in network.other_macs.items() if layer is None))
    if not fixed:
        return ""
    return f"; {fixed / network.macs_under({}):.4f} of the cost has no masks at all: `nas-blockout inspect` lists it"
