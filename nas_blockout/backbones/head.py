"""The end that residual and Inception networks share: the mean over positions, fully connected layers, the classes."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.branched import Sites
from nas_blockout.networks import Connection
from nas_blockout.randomness.draws import Randomness


class Head(nn.Module):
    """Mean over all positions, hidden layers with batch normalization and ReLU, a linear layer to the classes.

    Args:
        features: Channels that come in.
        hidden: Nodes of each fully connected layer before the classes; may be empty.
        classes: Number of classes.
        sites: ``nodes`` makes a layer put before the linear layers of ``placement``, ``weights`` wraps these.
    """

    def __init__(self, features: int, hidden: Sequence[int], classes: int, *, sites: Sites) -> None:
        super().__init__()
        widths = (features, *hidden, classes)
        linears = [
            nn.Linear(inputs, outputs, bias=position == len(hidden))  # batch normalization has its own bias
            for position, (inputs, outputs) in enumerate(pairwise(widths))
        ]
        entering = [sites.at_linear(position, len(linears)) for position in range(len(linears))]
        self.before = nn.ModuleDict({str(n): site.nodes() for n, site in enumerate(entering) if site.nodes})
        self.linears = nn.ModuleList(
            site.weights(linear) if site.weights else linear for site, linear in zip(entering, linears, strict=True)
        )
        self.normalize = nn.ModuleList(nn.BatchNorm1d(width) for width in hidden)

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits ``(batch, classes)`` of feature maps ``(batch, features, height, width)``."""
        x = x.mean((2, 3))
        for position, linear in enumerate(self.linears):
            if str(position) in self.before:
                x = self.before[str(position)](x, generator)
            x = linear(x) if isinstance(linear, nn.Linear) else linear(x, generator)
            if position < len(self.normalize):
                x = F.relu(self.normalize[position](x))
        return x

    def connections(self, source: str, *, prefix: str = "head") -> tuple[Connection, ...]:
        """Return the weights of the linear layers: from the features over ``hidden1`` ... to ``classes``.

        Args:
            source: Name of the layer of nodes that the features are.
            prefix: Name under which the network holds this head.
        """
        hidden = len(self.normalize)
        names = [source, *(f"hidden{n}" if hidden > 1 else "hidden" for n in range(1, hidden + 1)), "classes"]
        return tuple(
            Connection.between(f"{prefix}.linears.{position}.weight", linear.get_parameter("weight"), *layers)
            for position, (linear, layers) in enumerate(zip(self.linears, pairwise(names), strict=True))
        )
