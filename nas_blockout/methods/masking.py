"""The masked layers of Blockout: a weight scaled by the share of clusters that its two nodes have in common.

`masked_weight` makes the scaled weight; `masked_linear` multiplies by it without ever holding all of it. Which entries
are of which nodes, a `Connection` knows, and with what probability each is kept, `expected_entries`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from nas_blockout.networks import Connection
from nas_blockout.nodes import Nodes

Assignments = Mapping[str, Tensor]

_CACHED_NUMBERS = 1 << 17  # of a slice of a weight that is scaled: 512 KiB of float32
_FUSED_CLUSTERS = 16  # so many or fewer are summed up one by one in a compiled step
_NODES = 256  # of a slice of a weight that is multiplied by: fewer, and the matrix products get slow


class _MaskedWeight(torch.autograd.Function):
    """``W~ (.) (C_out C_in^T) / k`` with the gradients of eq. 8, where memory is read at the same speed everywhere.

    The mask is not kept but made again. The sums over nodes are products with the few clusters on the left, which run
    many times faster than with them on the right.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, c_out: Tensor, c_in: Tensor) -> Tensor:
        ctx.save_for_backward(weight, c_out, c_in)
        return weight * _mask(c_out, c_in, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, c_out, c_in = ctx.saved_tensors
        by_weight = gradient * _mask(c_out, c_in, weight) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return by_weight, None, None
        product, clusters = weight * gradient, c_in.shape[1]
        sums = product if product.dim() == 2 else product.sum(tuple(range(2, product.dim())))
        by_out, by_in = torch.mm(c_in.t(), sums.t()).t(), torch.mm(c_out.t(), sums).t()
        return by_weight, by_out / clusters, by_in / clusters


class _MaskedInSlices(torch.autograd.Function):
    """`_MaskedWeight` on a processor, in either order of memory.

    It is worked through in slices of output nodes: what is made of a slice (mask, products) is used up while it is
    still in the cache, so that only the weight, the result and their gradients go through memory. A mask has one number
    for a window, and of the product of weight and gradient only the sums over windows are multiplied by memberships.

    With `binary`, of memberships that are 0 or 1, an entry is kept whole where its nodes have a cluster in common: the
    mask is ``1 - prod_l (1 - c_out c_in)``, whose derivative by a membership asks whether they have any other.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, c_out: Tensor, c_in: Tensor, binary: bool) -> Tensor:
        ctx.save_for_backward(weight, c_out, c_in)
        ctx.binary = binary
        windows = _windows(weight)
        result = torch.empty_like(windows)
        masks = _masks(c_out, c_in, binary=binary)
        for part, mask, out in _slices(windows, masks, result):
            torch.mul(part, mask[:, :, None], out=out)
        return result.view(weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, c_out, c_in = ctx.saved_tensors
        of_weight, of_memberships = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])
        windows, above = _windows(weight), _windows(gradient)
        by_weight, by_out = torch.empty_like(windows) if of_weight else above, torch.empty_like(c_out)
        masks = _masks(c_out, c_in, binary=ctx.binary)
        sums = _SumsOfBinary(c_in) if ctx.binary else _SumsOfShares(c_in)
        space = torch.empty_like(windows[: _nodes_at_once(windows)])
        for part, upper, mask, below, nodes, out in _slices(windows, above, masks, by_weight, c_out, by_out):
            if of_memberships:
                sums.add(_over_windows(torch.mul(part, upper, out=space[: len(part)])), nodes, out)
            if of_weight:
                torch.mul(upper, mask[:, :, None], out=below)
        return (
            by_weight.view(weight.shape) if of_weight else None,
            by_out if of_memberships else None,
            sums.by_inputs() if of_memberships else None,
            None,
        )


class _SumsOfShares:
    """The sums of a product of weight and gradient that are gradients of memberships, under shares of clusters."""

    def __init__(self, c_in: Tensor) -> None:
        self.inputs = c_in.t() / c_in.shape[1]
        self.total = torch.zeros_like(self.inputs)

    def add(self, product: Tensor, nodes: Tensor, by_out: Tensor) -> None:
        """Add some output nodes, whose memberships are `nodes`; write their own gradient."""
        by_out.copy_(torch.mm(self.inputs, product.t()).t())
        self.total.addmm_(nodes.t(), product, alpha=1 / nodes.shape[1])

    def by_inputs(self) -> Tensor:
        """Return the gradient of the memberships of the inputs, shape ``(inputs, k)``."""
        return self.total.t()


class _SumsOfBinary:
    """The same under masks of 0 and 1: a membership counts where two nodes have no other cluster in common."""

    def __init__(self, c_in: Tensor) -> None:
        self.inputs = c_in.t().contiguous()
        self.none, self.one = (torch.zeros_like(self.inputs) for _ in range(2))

    def add(self, product: Tensor, nodes: Tensor, by_out: Tensor) -> None:
        """Add some output nodes, whose memberships are `nodes`; write their own gradient."""
        count = torch.mm(nodes, self.inputs)
        none, one = (product * (count == number) for number in (0, 1))
        by_out.copy_(torch.mm(self.inputs, one.t()).t() * nodes + torch.mm(self.inputs, none.t()).t())
        self.none.addmm_(nodes.t(), none)
        self.one.addmm_(nodes.t(), one)

    def by_inputs(self) -> Tensor:
        """Return the gradient of the memberships of the inputs, shape ``(inputs, k)``."""
        return (self.none + self.one * self.inputs).t()


def _masked_in_slices(weight: Tensor, c_out: Tensor, c_in: Tensor, *, binary: bool) -> Tensor:
    """Return the masked value of a weight on a processor."""
    result: Tensor = _MaskedInSlices.apply(weight, c_out, c_in, binary)  # type: ignore[no-untyped-call]
    return result


def _windows(weight: Tensor) -> Tensor:
    """Return a weight with its window in one dim, shape ``(out, in, window)``, in the same order of memory."""
    return weight[:, :, None] if weight.dim() == 2 else weight.flatten(2)


def _over_windows(product: Tensor) -> Tensor:
    """Return the sums over windows, shape ``(out, in)``."""
    window = product.shape[2]
    if window == 1:
        return product[:, :, 0]
    if product.stride(2) > 1:  # channels last: the sum is one of whole rows
        return product.sum(2)
    # A product with ones, which takes a third of the time of a sum over so few numbers.
    return torch.mv(product.reshape(-1, window), product.new_ones(window)).view(product.shape[:2])


def _masks(c_out: Tensor, c_in: Tensor, *, binary: bool) -> Tensor:
    """Return what scales the weights between two nodes, shape ``(out, in)``."""
    if binary:
        return torch.mm(c_out, c_in.t()).clamp_(max=1)
    return torch.mm(c_out / c_out.shape[1], c_in.t())


def _mask(c_out: Tensor, c_in: Tensor, weight: Tensor) -> Tensor:
    """Return the share of clusters that two nodes have in common, shaped to scale the weight between them."""
    scaled, clusters = c_out / c_out.shape[1], c_out.shape[1]
    if clusters > _FUSED_CLUSTERS or not torch.compiler.is_compiling():
        return _over_window(torch.mm(scaled, c_in.t()), weight)
    # A sum of outer products becomes a part of what it is multiplied with; a matrix product would fill memory.
    mask = scaled[:, :1] * c_in[:, 0]
    for cluster in range(1, clusters):
        mask = mask + scaled[:, cluster : cluster + 1] * c_in[:, cluster]
    return _over_window(mask, weight)


def _over_window(values: Tensor, weight: Tensor) -> Tensor:
    """Return a value for every pair of nodes with a side of one for each side of the weight's window."""
    return values[(...,) + (None,) * (weight.dim() - 2)]


def _nodes_at_once(weight: Tensor) -> int:
    """Return for how many output nodes a weight fills the cache."""
    return max(1, _CACHED_NUMBERS // max(1, weight.shape[1:].numel()))


def _slices(weight: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield slices of output nodes of a weight and of what has a row for each of them, a cache full each."""
    nodes = _nodes_at_once(weight)
    return zip(*(each.split(nodes) for each in (weight, *others)), strict=True)


def common_clusters(c_out: Tensor, c_in: Tensor, *, groups: int = 1) -> Tensor:
    """Return the number of clusters that the two nodes of every entry of a weight have in common.

    Args:
        c_out: Memberships of the output nodes, shape ``(out, k)``.
        c_in: Memberships of the input nodes, shape ``(in, k)``.
        groups: Groups of the weight: each equal share of the output nodes reads its own share of the input nodes.

    Returns:
        Shape ``(out, in / groups)``.
    """
    if groups == 1:
        return torch.mm(c_out, c_in.t())
    shares = (side.unflatten(0, (groups, -1)) for side in (c_out, c_in))
    return torch.einsum("gok,gik->goi", *shares).flatten(0, 1)


def masked_weight(weight: Tensor, c_out: Tensor, c_in: Tensor, *, groups: int = 1) -> Tensor:
    r"""Return the weight with every entry scaled by the share of clusters that its two nodes have in common.

    .. math:: W_j = \frac{1}{k} \widetilde{W}_j \odot C_j C_{j-1}^{\mathsf T}

    of which a weight in groups has the blocks on the diagonal: entry ``(o, i)`` of group g belongs to output node o and
    input node ``g * in / groups + i``.

    Args:
        weight: The unconstrained weight, shape ``(out, in / groups)`` or ``(out, in / groups, *window)``.
        c_out: Memberships C_j of the output nodes, shape ``(out, k)``: a draw, or P for inference (eq. 5).
        c_in: Memberships C_{j-1} of the input nodes, shape ``(in, k)``.
        groups: Groups of a convolution, 1 or more; as many as input nodes for a depthwise one.

    Returns:
        The masked weight, shaped as `weight`.

    Raises:
        ValueError: The weight has another shape than the nodes and the groups ask for.

    References:
        Murdock, Li, Zhou, Duerig. Blockout. CVPR 2016, eq. 3, 4, 5, 7 and 8.
    """
    _require_fit(weight, c_out, c_in, groups)
    if groups > 1:  # few numbers for each node: there is nothing to gain from slices
        return weight * _over_window(common_clusters(c_out / c_out.shape[1], c_in, groups=groups), weight)
    if torch.compiler.is_compiling():  # the compiler makes the mask again in the backward pass, too
        return weight * _mask(c_out, c_in, weight)
    if weight.device.type == "cpu":
        return _masked_in_slices(weight, c_out, c_in, binary=False)
    result: Tensor = _MaskedWeight.apply(weight, c_out, c_in)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


def binary_masked_weight(weight: Tensor, c_out: Tensor, c_in: Tensor, *, groups: int = 1) -> Tensor:
    r"""Return the weight with every entry kept whole where its two nodes share a cluster.

    .. math:: W_j = \widetilde{W}_j \odot \Big( 1 - \prod_l (1 - C_{j,l} C_{j-1,l}^{\mathsf T}) \Big)

    which of probabilities is the chance of that.

    Args:
        weight: As of `masked_weight`, and so are the memberships and the groups.
        c_out: Of the output nodes.
        c_in: Of the input nodes.
        groups: Of a convolution.

    Raises:
        ValueError: The weight has another shape than the nodes and the groups ask for.
    """
    _require_fit(weight, c_out, c_in, groups)
    if groups == 1 and weight.device.type == "cpu" and _are_drawn(c_out) and _are_drawn(c_in):
        return _masked_in_slices(weight, c_out, c_in, binary=True)
    return weight * _over_window(expected_share(c_out, c_in, groups=groups), weight)


def _are_drawn(memberships: Tensor) -> bool:
    """Whether all memberships are 0 or 1."""
    if torch.compiler.is_compiling() or isinstance(memberships, FakeTensor):  # whose values are not known
        return False
    values = memberships.detach()
    return torch.equal(values, values * values)


def _require_fit(weight: Tensor, c_out: Tensor, c_in: Tensor, groups: int) -> None:
    expected = (c_out.shape[0], c_in.shape[0] // groups)
    divided = c_out.shape[0] % groups == 0 == c_in.shape[0] % groups
    if weight.shape[:2] != expected or not divided or c_out.shape[1] != c_in.shape[1]:
        raise ValueError(
            f"memberships of {c_out.shape[0]} output and {c_in.shape[0]} input nodes need, in groups={groups}, "
            f"a weight that begins with the shape {expected}, and the same clusters on both sides; "
            f"got shape {tuple(weight.shape)} and {c_out.shape[1]} and {c_in.shape[1]} clusters"
        )


class _MaskedLinear(torch.autograd.Function):
    """``x W^T + b`` of a masked weight, slice by slice of output nodes.

    Mask, masked weight and the gradient of the latter exist for one slice at a time, and are used up while it is still
    in the cache: forward and backward read the weight once each, as a plain layer does, and write only its gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, c_out: Tensor, c_in: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, c_out, c_in)
        ctx.has_bias = bias is not None
        rows = x.reshape(-1, x.shape[-1])
        result = rows.new_empty(rows.shape[0], weight.shape[0])
        scaled, inputs = c_out / c_out.shape[1], c_in.t().contiguous()
        (space,) = _spaces(weight, 1, _NODES)
        for nodes in _strips(weight):
            part = torch.mm(scaled[nodes], inputs, out=space[: len(weight[nodes])]).mul_(weight[nodes])
            torch.mm(rows, part.t(), out=result[:, nodes])
        if bias is not None:
            result += bias
        return result.reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, c_out, c_in = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        rows, above = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        by_x = torch.zeros_like(rows) if of_x else None
        by_weight = torch.empty_like(weight) if of_weight else None
        scaled, inputs = c_out / c_out.shape[1], c_in.t().contiguous()
        by_out, by_in = torch.empty_like(c_out), torch.zeros_like(inputs)
        spaces = _spaces(weight, 2, _NODES)
        for nodes in _strips(weight):
            mask, product = (space[: len(weight[nodes])] for space in spaces)
            torch.mm(scaled[nodes], inputs, out=mask)
            if by_x is not None:
                by_x.addmm_(above[:, nodes], torch.mul(mask, weight[nodes], out=product))
            torch.mm(above[:, nodes].t(), rows, out=product)
            if by_weight is not None:
                torch.mul(product, mask, out=by_weight[nodes])
            product.mul_(weight[nodes])
            by_out[nodes] = torch.mm(inputs, product.t()).t()
            by_in.addmm_(scaled[nodes].t(), product)
        return (
            None if by_x is None else by_x.reshape(x.shape),
            by_weight,
            above.sum(0) if ctx.has_bias else None,
            by_out / c_in.shape[1],
            by_in.t(),
        )


def _spaces(weight: Tensor, number: int, nodes: int) -> list[Tensor]:
    """Return memory for slices of a weight: taking it anew for each slice costs more than filling it."""
    return [weight.new_empty(min(nodes, weight.shape[0]), weight.shape[1]) for _ in range(number)]


def _strips(weight: Tensor) -> Iterator[slice]:
    """Yield slices of the output nodes of a matrix, each large enough for a matrix product at full speed."""
    for first in range(0, weight.shape[0], _NODES):
        yield slice(first, min(first + _NODES, weight.shape[0]))


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: Tensor, c_in: Tensor) -> Tensor:
    """Return ``linear(x, masked_weight(weight, c_out, c_in), bias)`` without a tensor of the weight's size.

    Args:
        x: Input, shape ``(..., in)``.
        weight: The unconstrained weight, shape ``(out, in)``.
        bias: Shape ``(out,)``, or None.
        c_out: Memberships of the output nodes, shape ``(out, k)``.
        c_in: Memberships of the input nodes, shape ``(in, k)``.

    Returns:
        Shape ``(..., out)``.

    Raises:
        ValueError: The weight has another shape than the nodes ask for.

    References:
        Murdock, Li, Zhou, Duerig. Blockout. CVPR 2016, eq. 3, 4, 7 and 8.
    """
    _require_fit(weight, c_out, c_in, 1)
    result: Tensor = _MaskedLinear.apply(x, weight, bias, c_out, c_in)  # type: ignore[no-untyped-call]  # in torch
    return result


class LazilyMasked(Tensor):
    """A masked weight that stands in for a parameter: linear layers never make it, whatever else uses it does.

    It is made with `lazily_masked`, and only where `masked_linear` is the faster form: for a matrix of more than one
    slice, on a processor.
    """

    parts: tuple[Tensor, Tensor, Tensor]
    made: Tensor | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute a linear layer in slices; give every other function the masked weight itself."""
        if func is F.linear and not kwargs and type(args[0]) is not cls and type(args[1]) is cls:
            weight, c_out, c_in = args[1].parts
            return masked_linear(args[0], weight, args[2] if len(args) > 2 else None, c_out, c_in)
        arguments = tree_map_only(cls, _make, (args, kwargs or {}))
        return func(*arguments[0], **arguments[1])


def _make(lazy: LazilyMasked) -> Tensor:
    if lazy.made is None:
        lazy.made = masked_weight(*lazy.parts)
    return lazy.made


def lazily_masked(weight: Tensor, c_out: Tensor, c_in: Tensor, *, groups: int = 1) -> Tensor:
    """Return `masked_weight`, or what stands in for it where a linear layer is faster without it."""
    if weight.dim() != 2 or weight.device.type != "cpu" or weight.shape[0] <= _NODES:
        return masked_weight(weight, c_out, c_in, groups=groups)
    _require_fit(weight, c_out, c_in, groups)
    lazy = weight.detach().as_subclass(LazilyMasked)
    lazy.parts, lazy.made = (weight, c_out, c_in), None
    return lazy


def expected_share(p_out: Tensor, p_in: Tensor | None, *, groups: int = 1) -> Tensor:
    r"""Return the probability that each weight is kept: that its two nodes share at least one cluster.

    .. math:: 1 - \prod_l (1 - P_{t,l} P_{s,l})

    Args:
        p_out: Probabilities of the output nodes, shape ``(out, k)``.
        p_in: Probabilities of the input nodes, shape ``(in, k)``, or None where the input carries no memberships; a
            weight is then kept if its output node has a cluster at all.
        groups: Groups of the weight.

    Returns:
        Shape ``(out, in / groups)``, or ``(out, 1)`` without `p_in`.
    """
    if p_in is None:
        return 1 - (1 - p_out).prod(1, keepdim=True)
    lost = torch.ones(p_out.shape[0], p_in.shape[0] // groups, dtype=p_out.dtype, device=p_out.device)
    for cluster in range(p_out.shape[1]):
        out, in_ = (p[:, cluster].unflatten(0, (groups, -1)) for p in (p_out, p_in))
        lost = lost * (1 - (out[:, :, None] * in_[:, None, :]).flatten(0, 1))
    return 1 - lost


def sides(connection: Connection, assignments: Assignments) -> tuple[Tensor, Tensor] | None:
    """Return the memberships of the output and input nodes of a weight, or None where a layer has none."""
    if connection.source_nodes is None or not assignments.keys() >= set(connection.layers):
        return None
    c_out = connection.target_nodes.of(assignments)
    if connection.filters_each_node_alone:
        # What a node has in common with itself is all that it has: C * C = C for a draw, whose mean is P, not P * P.
        return c_out, torch.ones_like(c_out)
    return c_out, connection.source_nodes.of(assignments)


def expected_nodes(nodes: Nodes, probabilities: Assignments, *, like: Tensor) -> Tensor:
    """Return the probability that the node at each position has a cluster, shape ``(positions, 1)``; 1 without P."""
    if not any(name in probabilities for name in nodes.names):
        return like.new_ones(1)
    known = {name: probabilities.get(name, like.new_ones(width, like.shape[1])) for name, width in nodes.layers}
    return expected_share(nodes.of(known), None)


def expected_entries(connection: Connection, probabilities: Assignments) -> Tensor:
    """Return the probability that each entry of a masked weight is kept, shape ``(out, in / groups)``."""
    source, target = connection.source_nodes, connection.target_nodes
    assert source is not None
    p_out, p_in = target.of(probabilities), source.of(probabilities)
    share = expected_share(p_out, p_in, groups=connection.groups)
    if not source.are_all:
        share = torch.where(entries_without_node(connection, share.device), expected_share(p_out, None), share)
    if set(connection.sources).isdisjoint(connection.targets):
        return share
    # An entry between a node and itself: both of its ends are one draw.
    numbers = {identity: number for number, identity in enumerate(dict.fromkeys(source.identities + target.identities))}
    out_nodes, in_nodes = (
        torch.tensor([numbers[each] for each in nodes.identities], device=share.device).unflatten(
            0, (connection.groups, -1)
        )
        for nodes in (target, source)
    )
    alone = (out_nodes[:, :, None] == in_nodes[:, None, :]).flatten(0, 1)
    return torch.where(alone, expected_share(p_out, None), share)


def entries_without_node(connection: Connection, device: torch.device) -> Tensor:
    """Return which entries of a weight read a value that is no node's, shape ``(out, in / groups)``."""
    assert connection.source_nodes is not None
    none = torch.tensor([each is None for each in connection.source_nodes.identities], device=device)
    by_group: Tensor = none.unflatten(0, (connection.groups, -1))
    return by_group.repeat_interleave(connection.shape[0] // connection.groups, 0)
