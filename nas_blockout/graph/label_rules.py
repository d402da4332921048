"""What each kind of operation does to the nodes that it reads; what is unknown keeps them whole."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from nas_blockout.graph.functional import Untraceable
from nas_blockout.graph.labels import Call, Labels, Rule, Use, first_along, same_along, unrepeated
from nas_blockout.graph.operations import name_of, place_of

# Groups of a convolution up to which its channels are nodes of their own. Beyond, the channels of one group are one
# node: otherwise every group needs branches of its own, thousands in a ResNeXt.
MOST_SEPARATE_GROUPS = 4

_ENTRYWISE = (
    "abs add alias bitwise_and bitwise_not bitwise_or celu clamp clamp_max clamp_min clone contiguous cos detach div "
    "alpha_dropout dropout elu eq erf exp expm1 feature_alpha_dropout feature_dropout floor ge gelu gt hardsigmoid "
    "hardswish hardtanh le leaky_relu lerp "
    "lift_fresh_copy log log1p logical_and logical_not logical_or log_sigmoid lt masked_fill maximum minimum mish mul "
    "ne neg pow reciprocal relu relu6 round rsqrt rsub selu sigmoid sign silu sin softplus sqrt square sub tanh "
    "threshold to true_divide type_as where _to_copy"
)
_MOVES = (
    "channel_shuffle chunk expand expand_as flatten flip index index_select movedim narrow permute pixel_shuffle "
    "pixel_unshuffle repeat repeat_interleave reshape reshape_as roll select slice split split_with_sizes squeeze "
    "swapaxes t tensor_split tile transpose unbind unflatten unfold unsqueeze view view_as _unsafe_view"
)
_POOLS = (
    "adaptive_avg_pool adaptive_max_pool avg_pool lp_pool max_pool upsample_bicubic upsample_bilinear upsample_linear "
    "upsample_nearest upsample_nearest_exact upsample_trilinear _upsample_nearest_exact"
)
_REDUCTIONS = (
    "all amax amin any linalg_vector_norm logsumexp max mean median min norm prod std std_mean sum var var_mean"
)
_ALONG = "cumprod cumsum log_softmax softmax softmin _log_softmax _softmax"
_NAMED = {
    "lstm": "read by an LSTM",
    "gru": "read by a GRU",
    "rnn_tanh": "read by a recurrent layer",
    "rnn_relu": "read by a recurrent layer",
    "embedding": "read by an embedding",
    "einsum": "read by einsum",
    "gru_cell": "read by a GRU",
    "lstm_cell": "read by an LSTM",
    "grid_sampler": "sampled at computed places",
}


COMPUTED_WEIGHT = "read by a computed weight"

# What keeps its nodes whole and hands them on.
_ORDERED = {
    "group_norm": "GroupNorm over nodes",
    "instance_norm": "InstanceNorm with a weight for each node",
    "local_response_norm": "normalized over neighboring nodes",
    "prelu": "PReLU with a slope for each node",
}


def unknown(call: Call) -> Labels:
    """Keep what an operation without a rule reads whole."""
    name = _name(call)
    return call.whole(_NAMED.get(name, f"read by {name}, an operation without a rule"))


def _name(call: Call) -> str:
    return name_of(call.node)


def _entrywise(call: Call) -> Labels:
    """Entries that meet are one node: sums of a residual stream, gates, gated units."""
    shape = call.value.shape
    met = [labels for labels in map(call.labels, call.operands) if bool(labels.any())]
    fitting = [
        labels for number, labels in enumerate(met) if not _spreads(call, labels, met[:number] + met[number + 1 :])
    ]
    if not fitting:
        return call.nothing()
    result = fitting[0].expand(shape)
    for labels in fitting[1:]:
        call.forest.unite(result, labels)
        result = torch.where(result == 0, labels, result)
    return result.expand(shape)


def _spreads(call: Call, labels: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether one value meets many nodes, as a map for all channels does; it is kept whole then."""
    shape = call.value.shape
    own = (1,) * (len(shape) - labels.dim()) + tuple(labels.shape)
    dims = [dim for dim, (size, all_) in enumerate(zip(own, shape, strict=True)) if size == 1 and all_ > 1]
    if all(same_along(other.expand(shape), dims) for other in others):
        return False
    call.forest.keep_whole(labels, "meets all nodes of another layer")
    return True


def _move(call: Call) -> Labels:
    """What only moves entries moves their labels with them."""
    moved, *others = call.operands
    values = call.run.values
    if moved is not call.active[0] or (_name(call) not in _SHAPED_BY and any(values[each].is_meta for each in others)):
        return call.whole(f"moved by computed places ({_name(call)})")
    labels = call.labels(moved)

    def value(each: fx.Node) -> Any:
        return labels if each is moved else values[each]

    args, kwargs = fx.node.map_arg(call.node.args, value), fx.node.map_arg(call.node.kwargs, value)
    target: Any = call.node.target
    if _name(call) in ("view", "_unsafe_view", "view_as", "reshape_as"):
        return labels.reshape(call.value.shape)
    if _name(call) == "channel_shuffle":
        groups: int = call.given["groups"]
        parts = labels.reshape(labels.shape[0], groups, -1, *labels.shape[2:])
        return parts.transpose(1, 2).flatten(1, 2)
    result: Any = target(*args, **kwargs)
    return result if isinstance(result, Tensor) else tuple(result)


_SHAPED_BY = {"expand_as", "view_as", "reshape_as"}


def _part(call: Call) -> Labels:
    """One of several results."""
    several, number = call.node.args
    assert isinstance(several, fx.Node)
    assert isinstance(number, int)
    labels = call.run.labels[several]
    assert isinstance(labels, tuple)
    return call.forest.classes(labels[number])


def _pad(call: Call) -> Labels:
    """What is added belongs to the node of what is beside it; channels that are added belong to none."""
    labels = call.labels(call.operands[0])
    pads: Sequence[int] = call.given["pad"] if "pad" in call.given else call.given["padding"]
    for number in range(len(pads) // 2):
        before, after = pads[2 * number], pads[2 * number + 1]
        dim = labels.dim() - 1 - number
        if before == after == 0:
            continue
        size = call.value.shape[dim]
        if same_along(labels, [dim]):
            labels = first_along(labels, [dim]).narrow(dim, 0, 1)
            labels = labels.expand(*labels.shape[:dim], size, *labels.shape[dim + 1 :])
        elif call.given.get("mode", "constant") == "constant":
            labels = F.pad(labels, [0, 0] * number + [before, after])
        else:
            return call.whole("padded by other nodes")
    return labels


def _join(call: Call) -> Labels:
    """Concatenated channels keep their nodes. Concatenated tokens are of the same nodes, also constants among them."""
    dim, stacked = call.given["dim"], _name(call) == "stack"
    parts = [call.labels(each) for each in call.given["tensors"]]
    if stacked:
        dim %= call.value.dim()
        parts = [part.unsqueeze(dim) for part in parts]
    dim %= call.value.dim()
    labelled = [part for part in parts if bool(part.any())]
    if not labelled:
        return call.nothing()
    channels = any(not same_along(part, [dim]) for part in labelled) or (
        not stacked and all(part.shape[dim] == 1 for part in labelled) and len(labelled) > 1
    )
    if channels:
        return _concatenated(parts, dim, call.value.shape)
    node = labelled[0].narrow(dim, 0, 1)
    for part in labelled[1:]:
        call.forest.unite(node, part.narrow(dim, 0, 1))
        node = torch.where(node == 0, part.narrow(dim, 0, 1), node)
    return node.expand(call.value.shape)


def _concatenated(parts: Sequence[Tensor], dim: int, shape: Sequence[int]) -> Tensor:
    """Concatenate labels, of which most are the same at every position, without writing them out."""
    small = list(parts)
    for other in range(len(shape)):
        if other != dim and all(same_along(part, [other]) for part in small):
            small = [part.narrow(other, 0, 1) for part in small]
    return torch.cat(small, dim).expand(shape)


def _pool(call: Call) -> Labels:
    """What pools or resizes images keeps channels."""
    labels = call.labels(call.operands[0])
    several = isinstance(call.value, tuple | list)
    shape = call.value[0].shape if several else call.value.shape
    sides = list(range(labels.dim() - _sides(call), labels.dim()))
    if len(call.active) > 1 or not same_along(labels, sides):
        return call.whole("pooled together with other nodes")
    for side in sides:
        labels = labels.narrow(side, 0, 1)
    pooled = labels.expand(shape)
    return (pooled, *(torch.zeros_like(pooled) for _ in call.value[1:])) if several else pooled


def _sides(call: Call) -> int:
    return int(next(letter for letter in _name(call) if letter.isdigit()))


def _reduce(call: Call) -> Labels:
    """Sums over positions keep nodes; sums over nodes read them whole."""
    if "other" in call.given:
        return _entrywise(call)  # the larger of two tensors
    labels = call.labels(call.operands[0])
    dims = call.given.get("dim")
    dims = list(range(labels.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    if len(call.active) > 1 or not same_along(labels, dims):
        return call.whole("summed over nodes")
    kept = bool(call.given.get("keepdim"))
    for dim in sorted((dim % labels.dim() for dim in dims), reverse=True):
        labels = labels.narrow(dim, 0, 1) if kept else labels.select(dim, 0)
    if isinstance(call.value, tuple | list):
        return tuple(labels for _ in call.value)
    return labels


def _along(call: Call) -> Labels:
    """Softmax and running sums over positions keep nodes; over nodes they read them whole."""
    labels = call.labels(call.operands[0])
    if same_along(labels, [call.given["dim"] % labels.dim()]):
        return labels
    call.forest.keep_whole(labels, f"{_name(call).strip('_').replace('_', ' ')} over nodes")
    return labels


def _layer_norm(call: Call) -> Labels:
    labels = call.labels("input")
    dims = range(labels.dim() - len(call.given["normalized_shape"]), labels.dim())
    if not same_along(labels, list(dims)):
        call.forest.keep_whole(labels, "RMSNorm over nodes" if _name(call) == "rms_norm" else "LayerNorm over nodes")
    return labels


def _ordered(call: Call) -> Labels:
    labels = call.labels(call.operands[0])
    call.forest.keep_whole(labels, _ORDERED[_name(call)])
    return labels


def _batch_norm(call: Call) -> Labels:
    """Each channel is normalized alone."""
    labels = call.labels("input")
    channels = _vector(call, labels, 1, "batch norm mixes nodes")
    weight = call.given["weight"]
    if weight in call.run.trace.parameter_of:
        call.run.scales[call.run.trace.parameter_of[weight]] = channels
    if any(each not in call.run.trace.parameter_of for each in _norm_inputs(call)):
        call.forest.keep_whole(labels, "batch norm with computed weights")
    return labels


def _norm_inputs(call: Call) -> Iterable[fx.Node]:
    given = (call.given[name] for name in ("weight", "bias", "running_mean", "running_var"))
    return (each for each in given if each is not None)


def _vector(call: Call, labels: Tensor, dim: int, reason: str) -> Tensor:
    """Return the labels along one dim; where they differ between other positions they are one node, kept whole."""
    others = [other for other in range(labels.dim()) if other != dim % labels.dim()]
    if same_along(labels, others):
        return first_along(labels, others).movedim(dim, -1).reshape(-1, labels.shape[dim])[0]
    rows = labels.movedim(dim, -1).reshape(-1, labels.shape[dim])
    vector = rows.amax(0)
    if bool(((rows == 0) | (rows == vector)).all()):
        return vector  # constants among them
    call.forest.unite(rows, vector)
    call.forest.keep_whole(rows, reason)
    return call.forest.classes(vector)


def _linear(call: Call) -> Labels:
    labels = call.labels("input")
    others = list(range(labels.dim() - 1))
    if same_along(labels, [-1 % labels.dim()]) and not same_along(labels, others):
        # It mixes positions, such as tokens: the nodes are along another dim, and pass.
        call.run.unmasked[call.node] = "mixes positions, not nodes"
        return labels.narrow(-1, 0, 1).expand(call.value.shape)
    return _weighted(call, labels, -1, 1)


def _convolution(call: Call) -> Labels:
    labels = call.labels("input")
    sides = list(range(2, labels.dim()))
    if labels.dim() != call.run.values[call.given["weight"]].dim():
        return call.whole("convolution of one image alone")
    if not same_along(labels, sides):
        if not _are_apart(labels):
            return call.whole("convolution along nodes")
        # Positions of one channel are made by several nodes, as by a pixel shuffle: they are one.
        call.forest.unite(labels, first_along(labels, sides))
        labels = call.forest.classes(labels)
    return _weighted(call, labels, 1, call.given["groups"])


def _are_apart(labels: Tensor) -> bool:
    """Whether no node has a part in two channels, of which there are several."""
    channels = unrepeated(labels).movedim(1, 0)
    parts = [channel.unique() for channel in channels]
    return len(parts) > 1 and len(torch.cat(parts).unique()) == sum(map(len, parts))


def _transposed(call: Call) -> Labels:
    return call.whole("read by a transposed convolution")


def _weighted(call: Call, labels: Tensor, dim: int, groups: int) -> Labels:
    """A weight makes nodes of those that it reads; a depthwise convolution hands each on."""
    run, node = call.run, call.given["weight"]
    name = run.trace.parameter_of.get(node)
    if name is None:
        return call.whole(COMPUTED_WEIGHT)
    sources = _vector(call, labels, dim, "different nodes at one weight")
    shape = tuple(run.values[node].shape)
    known = run.uses.get(call.node) or next((use for use in run.uses.values() if use.weight == name), None)
    added = call.given.get("bias")
    bias = run.trace.parameter_of.get(added) if isinstance(added, fx.Node) else None
    if known and known.bias != bias:
        raise Untraceable(
            f"operations that share a weight must share their bias, but {name} is used with {known.bias or 'no bias'} "
            f"and, at {place_of(call.node)}, with {bias or 'no bias'}: give them one bias, or weights of their own"
        )
    targets = known.targets if known else sources if groups == shape[0] == len(sources) > 1 else None
    if targets is None:
        targets = run.forest.fresh(shape[0])
        _tie_groups(call, sources, targets, groups)
    if known and call.node not in run.uses:
        run.forest.unite(known.sources, sources)
        for tied in (sources, targets):
            run.forest.keep_whole(tied, "shared weight")
    if any(not _is_weight_of(user, node) for user in node.users):
        for tied in (sources, targets):
            run.forest.keep_whole(tied, "weight that is read elsewhere too")
    run.uses[call.node] = Use(name, shape, sources, targets, groups, bias)
    view = [1] * call.value.dim()
    view[dim] = -1
    return run.forest.classes(targets).view(view).expand(call.value.shape)


def _tie_groups(call: Call, sources: Tensor, targets: Tensor, groups: int) -> None:
    if groups > MOST_SEPARATE_GROUPS:
        for side in (sources, targets):
            shares = side.view(groups, -1)
            call.forest.unite(shares, shares.amax(1, keepdim=True))


def _is_weight_of(user: fx.Node, weight: fx.Node) -> bool:
    return len(user.args) > 1 and user.args[1] is weight and RULES.get(name_of(user)) in (_linear, _convolution)


def _product(call: Call) -> Labels:
    factors = [each for each in call.given.values() if isinstance(each, fx.Node)]
    first, second = (call.labels(each) for each in factors[-2:])
    if min(first.dim(), second.dim()) < 2:
        return call.whole("product over nodes")
    if len(factors) > 2:
        call.forest.keep_whole(call.labels(factors[0]), "added to a product")
    return _matrix_product(call, first, second)


def _attention(call: Call) -> Labels:
    query, key, value = (call.labels(each) for each in ("query", "key", "value"))
    if call.given["attn_mask"] is not None and not call.run.constant[call.given["attn_mask"]]:
        return call.whole("attention with a computed mask")
    if call.given.get("enable_gqa") and key.dim() > 2:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = _matrix_product(call, query, key.transpose(-1, -2))
    return _matrix_product(call, scores, call.forest.classes(value))


def _matrix_product(call: Call, first: Tensor, second: Tensor) -> Tensor:
    """Return labels of a product of matrices, whose leading dims are heads and images.

    Nodes along the columns of the first matrix, or along the rows of the second, are summed over. They are one node
    with all others of their head, where there are heads; without heads they are kept whole.
    """
    heads = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    shape = (*heads, first.shape[-2], second.shape[-1])
    first, second = first.expand(*heads, *first.shape[-2:]), second.expand(*heads, *second.shape[-2:])
    if same_along(first, [first.dim() - 1]) and same_along(second, [second.dim() - 2]):
        rows, columns = first[..., :1], second[..., :1, :]
        if not bool(rows.any()):
            return columns.expand(shape)
        if not bool(columns.any()):
            return rows.expand(shape)
    return _tied_heads(call, first, second, shape)


def _tied_heads(call: Call, first: Tensor, second: Tensor, shape: tuple[int, ...]) -> Tensor:
    nodes = [each.flatten(-2).amax(-1)[..., None, None] for each in (first, second)]  # one of each head
    many = [len(each.unique()) > 1 for each in nodes]
    result = torch.zeros(shape, dtype=torch.long)
    for side, node, several in zip((first, second), nodes, many, strict=True):
        if several:
            call.forest.unite(side, node)
            call.forest.unite(node, result.amax((-1, -2), keepdim=True))
            result = torch.where(result == 0, node, result)
        else:
            reason = "shared by all attention heads" if any(many) else "product over nodes"
            call.forest.keep_whole(side, reason)
    return call.forest.classes(result)


def _table() -> Mapping[str, Rule]:
    rules: dict[str, Rule] = dict.fromkeys(_ENTRYWISE.split(), _entrywise)
    rules |= dict.fromkeys(_MOVES.split(), _move)
    rules |= dict.fromkeys(_REDUCTIONS.split(), _reduce)
    rules |= dict.fromkeys(_ALONG.split(), _along)
    for pool in _POOLS.split():
        rules |= {f"{pool}{sides}d{suffix}": _pool for sides in (1, 2, 3) for suffix in ("", "_with_indices")}
    rules |= dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution)
    rules |= dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed)
    rules |= dict.fromkeys(("matmul", "mm", "bmm", "baddbmm", "addmm"), _product)
    rules |= dict.fromkeys(("pad", "constant_pad_nd"), _pad)
    rules |= dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm)
    rules |= dict.fromkeys(("cat", "stack", "concat"), _join)
    rules |= {"linear": _linear, "batch_norm": _batch_norm, "getitem": _part}
    rules |= dict.fromkeys(_ORDERED, _ordered)
    rules |= {"scaled_dot_product_attention": _attention}
    return MappingProxyType(rules)


RULES = _table()
