"""Where P begins: by depth, with noise, and by the magnitudes of nodes that come with weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas_blockout.methods.masking import Assignments
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.networks import Network, masked_connections, masked_widths
from nas_blockout.settings_fields import Conflict


def require_nodes(network: Network, settings: BlockoutSettings) -> tuple[str, ...]:
    """Refuse more clusters than a layer has nodes; the weights of the network may be on the device ``meta``.

    Args:
        network: The network to mask.
        settings: Clusters, and which layers are masked.

    Returns:
        The layers of nodes that would carry memberships, in the order of the forward pass.

    Raises:
        Conflict: There are more clusters than nodes in a masked layer.
    """
    chosen = masked_connections(network.connections, settings.masked)
    widths = masked_widths(network.connections, chosen)
    _require_nodes(widths, settings)
    return tuple(widths)


def _require_nodes(widths: Mapping[str, int], settings: BlockoutSettings) -> None:
    for name, nodes in widths.items():
        if settings.clusters > nodes:
            got = f"got clusters={settings.clusters} for nodes={nodes} in layer {name!r}"
            raise Conflict(f"clusters must lie in 1..nodes, {got}", "clusters", "masked")


def initial_logits(widths: Mapping[str, int], settings: BlockoutSettings, known: Assignments) -> dict[str, Tensor]:
    """Return the logits of P before the first step by layer, shape ``(nodes, k)`` each.

    Args:
        widths: Nodes of each masked layer, from the image to the classes.
        settings: Where P begins.
        known: Standardized magnitudes of the nodes of layers, shape ``(nodes,)``, as far as they are known.

    Raises:
        Conflict: There are more clusters than nodes in a masked layer.
    """
    _require_nodes(widths, settings)
    first, last = settings.first_probability, settings.last_probability
    logits = {}
    for depth, (name, nodes) in zip(depths(len(widths), settings), widths.items(), strict=True):
        p = first + (last - first) * depth
        value = torch.full((nodes, settings.clusters), p).logit()
        if name in known and settings.magnitude_spread:
            value = value + settings.magnitude_spread * known[name].to(value)[:, None]
        if settings.logit_noise:
            value = value + settings.logit_noise * torch.randn_like(value)  # as initial weights: seeded by the caller
        logits[name] = value
    return logits


def depths(layers: int, settings: BlockoutSettings) -> list[float]:
    """Return how deep each of the masked layers counts, from 0 for the first to 1 for the last."""
    return [(position / max(1, layers - 1)) ** settings.depth_exponent for position in range(layers)]
