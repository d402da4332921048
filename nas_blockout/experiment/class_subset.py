"""A trained network cut to some of its classes: what only the others need is left out, and nothing is trained again.

The network with a choice of its logits is one more network. Its graph is analyzed as any other's, and the nodes from
which no chosen logit can be reached are removed: in a branched network whole branches, in one without branches little
more than the rows of the classes that are left out.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.experiment.branchable import architecture_of
from nas_blockout.graph.analysis import analyze
from nas_blockout.graph.branched import BranchedGraph, branch
from nas_blockout.graph.network import GraphNetwork, memberships_of, nodes_of
from nas_blockout.methods.blockdrop import BlockDrop
from nas_blockout.networks import Network
from nas_blockout.structure.clean_up import effective
from nas_blockout.structure.distill import TOLERANCE, distill, equality_of
from nas_blockout.structure.wiring import Wiring

FEWEST_CLASSES = 2  # of one class there is nothing to tell
PROOF_IMAGES = 64


@dataclass(frozen=True, slots=True)
class ClassSubset:
    """A network for some classes of another one.

    Args:
        network: Gives the logits of the chosen classes, in the order in which they were asked for; in eval mode.
        architecture: What is left of the groups of the whole network; None if that was not built from any.
        equality: By precision the largest difference to the logits of the whole network, its bound, and how far the
            logits spread over images.
    """

    network: BranchedGraph
    architecture: Architecture | None
    equality: Mapping[str, Mapping[str, float]]


class _Chosen(nn.Module):
    """The logits of some classes of a network."""

    classes: Tensor

    def __init__(self, network: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("classes", torch.tensor(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape ``(batch, chosen classes)``."""
        logits: Tensor = self.network(x)
        return logits.index_select(1, self.classes)


def subset_of(network: Network, shape: tuple[int, int, int], classes: int, chosen: Sequence[int]) -> ClassSubset:
    """Return the network that is left of another one for some of its classes.

    Args:
        network: Trained; it stays as it is.
        shape: Channels, height and width of an image.
        classes: Its number of classes.
        chosen: Labels, at least two, in the order of the logits that are wanted.

    Raises:
        ValueError: A label is repeated or is none, there are too few, images take paths of their own, or the network
            has no graph that can be traced.
    """
    if wrong := [label for label in chosen if not 0 <= label < classes]:
        raise ValueError(f"classes must lie in 0..{classes - 1}, got {wrong[0]}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"each class must be given once, got {list(chosen)}")
    if len(chosen) < FEWEST_CLASSES:
        raise ValueError(f"a network tells at least {FEWEST_CLASSES} classes apart, got {list(chosen)}")
    if isinstance(network, BlockDrop):
        raise ValueError("each image takes a path of its own through a network that blockdrop steers")
    whole = _Chosen(copy.deepcopy(network).cpu().requires_grad_(requires_grad=False), chosen).eval()
    analysis = analyze(whole, shape)
    layers = {layer.name: torch.ones(layer.width, 1, dtype=torch.bool) for layer in analysis.layers}
    kept = effective(layers, Wiring.of(GraphNetwork(whole, analysis)))
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    left = branch(analysis, {name: value.float() for name, value in kept.items()}, tensors).eval()
    architecture = architecture_of(network)
    return ClassSubset(
        left.requires_grad_(),
        None if architecture is None else _restricted(architecture, chosen),
        _equality(whole, left, shape),
    )


def _restricted(architecture: Architecture, chosen: Sequence[int]) -> Architecture:
    """Return an architecture without the classes that are not chosen and without what only they read."""
    named = nodes_of(architecture)
    widths = {name: 1 + max(node for group in groups for node in group) for name, groups in named.items()}
    values = memberships_of(architecture, widths)
    last = architecture.layers[-1].name
    values[last] = values[last][list(chosen)]
    wiring = None
    if not architecture.is_chain:
        rigid = frozenset(layer.name for layer in architecture.layers if layer.rigid)
        wiring = Wiring(widths | {last: len(chosen)}, architecture.edges, rigid)
    hard = {name: value > 0 for name, value in values.items()}
    return distill(values, hard, wiring=wiring, clean_up=False).architecture


def _equality(whole: nn.Module, left: nn.Module, shape: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return by precision how far the logits of two networks are apart, on images of noise of different strength."""
    generator, found = torch.Generator().manual_seed(0), {}
    noise = torch.randn(PROOF_IMAGES, *shape, generator=generator, dtype=torch.float64)
    images = noise * torch.linspace(0.1, 3, PROOF_IMAGES, dtype=torch.float64).view(-1, 1, 1, 1)
    for dtype in TOLERANCE:
        first, second = (copy.deepcopy(network).to(dtype)(images.to(dtype)).detach() for network in (whole, left))
        found[str(dtype).removeprefix("torch.")] = equality_of(first, second)
    return found
