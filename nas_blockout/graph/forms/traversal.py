"""The walk over a branched graph under chosen forms: it adds up what they are expected to take, and writes them.

Values travel in blocks of nodes, one for each term that makes them. What treats each node alone is done block by block,
so that a branch is not put together and taken apart again between two operations. Blocks are put together where
something reads them in another way, once for each value and each way.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from nas_blockout.backbones.inference_cost import BATCHES, LANES, Costs
from nas_blockout.graph.forms.blocks import Block, Read, ReadKey, Value, order_of, runs_of
from nas_blockout.graph.forms.folded_operations import Filters, Folded, affine
from nas_blockout.graph.forms.node_sets import first, members, places_in, runs_in, spread
from nas_blockout.graph.forms.terms import Form, FusedNorm, Term, fused_filters, fused_term
from nas_blockout.graph.forms.values import Program
from nas_blockout.graph.operations import name_of
from nas_blockout.graph.rewrite.emitter import Emitter
from nas_blockout.graph.rewrite.training_layers import DropPath, MapDropout
from nas_blockout.graph.rewrite.unweighted import OPERATIONS, elementwise, reduced, within_maps

_DROPS = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, MapDropout, DropPath)
_MOST_RUNS = 3  # of consecutive nodes that are read as views; more are copied by index
_MOST_BLOCKS = 8  # that a concatenation keeps apart
_FREE = {"reshape", "view", "permute", "transpose", "unsqueeze", "squeeze", "select", "expand", "getitem", "sym_size"}


# What makes no value that spoils others out of the zeros that fill up a block, block by block.
_HARMLESS = """
    add sub mul relu relu6 hardtanh hardswish hardsigmoid sigmoid silu gelu elu leaky_relu tanh mish clamp mean amax sum
    max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d
"""
_FILL_HARMLESS = frozenset(_HARMLESS.split())


class Traversal:
    """One walk.

    Args:
        program: The graph.
        forms: Of each weighted operation but those that filter each node alone.
        costs: Of the runtime.
        emitter: Writes the new graph; None to find only the expected time.

    Attributes:
        times: Expected microseconds, for one image and for many.
    """

    def __init__(
        self,
        program: Program,
        forms: Mapping[fx.Node, Form],
        costs: Costs,
        emitter: Emitter | None = None,
        lanes: int = LANES,
    ) -> None:
        self.program, self.forms, self.costs, self.emitter = program, forms, costs, emitter
        self.lanes = lanes
        self.times = [0.0] * len(BATCHES)
        self._values: dict[fx.Node, Value] = {}
        self._reads: dict[ReadKey, Read] = {}

    def run(self) -> fx.Node | None:
        """Walk over the graph and return the new logits."""
        for node in self.program.body.graph.nodes:
            if node.op == "output":
                return self._whole(node.args[0])
            self._values[node] = self._counterpart(node)
        raise AssertionError("a graph has an output")

    def step(
        self, node: fx.Node, values: Mapping[fx.Node, Value], reads: Mapping[ReadKey, Read]
    ) -> tuple[Value | None, dict[ReadKey, Read], list[float]]:
        """Go over one node, and return its value, None at the output, what it puts together, and the expected times.

        Args:
            node: The next one.
            values: Of what it reads.
            reads: What was put together before of those values.
        """
        self._values, self._reads, self.times = dict(values), dict(reads), [0.0] * len(BATCHES)
        value = None
        if node.op == "output":
            self._whole(node.args[0])  # type: ignore[arg-type]  # the logits
        else:
            value = self._counterpart(node)
        return value, {key: read for key, read in self._reads.items() if key not in reads}, self.times

    # ---- what is expected of operations

    def term_times(
        self, node: fx.Node, operation: Folded | Filters, *, rows: int, reads: int, groups: int
    ) -> list[float]:
        """Return the expected times of one convolution or product.

        Args:
            node: The operation.
            operation: What is known of it.
            rows: That each group makes.
            reads: Places that each group reads.
            groups: Number of groups.
        """
        window = operation.call.window
        kind, lanes = (4, LANES) if window else (2, 1)
        dim = operation.call.dim(len(self.program.shapes[node]))
        used = self.program.numbers(node, dim)
        read = self.program.numbers(node.all_input_nodes[0], dim) * reads * groups
        kernel = operation.kernel if isinstance(operation, Folded) else operation.weight[0, 0].numel()
        macs = used * -(-rows // lanes) * lanes * reads * groups * kernel
        if isinstance(operation, Filters):
            macs = used * reads * groups * kernel
        written = used * rows * groups
        weight = self.costs.weight * rows * reads * groups * kernel if window else 0.0
        return [
            weight + rates.time(read=images * read, written=images * written, macs=images * macs, in_groups=groups > 1)
            for rates, images in zip(self.costs.term[kind], BATCHES, strict=True)
        ]

    def _charge(self, times: Sequence[float]) -> None:
        self.times = [have + more for have, more in zip(self.times, times, strict=True)]

    def _follow(self, node: fx.Node, count: int) -> None:
        """Charge what works on each of `count` numbers of an image by itself."""
        kind = 4 if len(self.program.shapes.get(node, ())) > 2 else 2
        rates = zip(self.costs.followed[kind], BATCHES, strict=True)
        self._charge([each.time(read=images * count) for each, images in rates])

    def _copying(self, value: Value, pieces: int, width: int) -> list[float]:
        used = self.program.numbers(value.node, value.dim)
        return [
            each.time(read=images * used * pieces, written=images * used * width) + self.costs.piece * pieces
            for each, images in zip(self.costs.copied, BATCHES, strict=True)
        ]

    # ---- reading

    def _read(self, value: Value, wanted: int, *, bare: bool = False) -> Read:
        """Return some nodes of a value in one tensor; if `bare`, in ascending order and nothing else."""
        parts = [(block, block.nodes & wanted) for block in value.blocks if block.nodes & wanted]
        if len(parts) == 1 and parts[0][0].nodes == wanted and not (bare and parts[0][0].fill):
            return Read(parts[0][0].handle, (*members(wanted), *(-1,) * parts[0][0].fill))
        key = (value.node, value.dim, wanted, bare)
        other = self._reads.get((*key[:3], not bare))
        if other and (not bare or other.order == members(wanted)):
            return other
        if key not in self._reads:
            read = self._put_together(value, parts, bare=bare)
            if bare and list(read.order) != sorted(read.order):
                places = sorted(range(len(read.order)), key=read.order.__getitem__)
                self._charge(self._copying(value, len(runs_of(places)), len(places)))
                read = Read(self._taken(read.handle, value.dim, places), tuple(sorted(read.order)))
            self._reads[key] = read
        return self._reads[key]

    def _put_together(self, value: Value, parts: Sequence[tuple[Block, int]], *, bare: bool) -> Read:
        handles: list[fx.Node | None] = []
        order: list[int] = []
        for block, part in parts:
            runs = runs_in(part, block.nodes)
            order += members(part)
            if part == block.nodes and not (bare and block.fill):
                handles.append(block.handle)
                order += (-1,) * block.fill
            elif len(runs) > _MOST_RUNS:
                self._charge(self._copying(value, len(runs), part.bit_count()))
                handles.append(self._taken(block.handle, value.dim, places_in(part, block.nodes)))
            else:
                for start, stop in runs:
                    if not self.costs.views:
                        self._charge(self._copying(value, 1, stop - start))
                    handles.append(self._narrowed(block.handle, value.dim, start, stop - start))
        if len(handles) == 1:
            one_run = len(runs_in(parts[0][1], parts[0][0].nodes)) == 1
            return Read(handles[0], tuple(order), is_view=one_run and self.costs.views)
        self._charge(self._copying(value, len(handles), len(order)))
        return Read(self._call(torch.cat, handles, value.dim), tuple(order))

    def _along(self, node: fx.Node, dim: int) -> Value:
        """Return the counterpart of a value in blocks along a dim."""
        value = self._values[node]
        if value.dim == dim or not self.program.shapes.get(node):
            return value
        return Value(node, dim, (Block(first(self.program.shapes[node][dim]), self._whole(node)),))

    def _whole(self, node: fx.Node) -> fx.Node | None:
        value = self._values[node]
        everything = sum(block.nodes for block in value.blocks)
        return self._read(value, everything, bare=True).handle

    def _one(self, node: fx.Node, handle: fx.Node | None, dim: int = 1) -> Value:
        shape = self.program.shapes.get(node, ())
        dim = dim if dim < len(shape) else 0
        return Value(node, dim, (Block(first(shape[dim]) if shape else 1, handle),))

    # ---- writing

    def _call(self, function: Any, *args: Any) -> fx.Node | None:
        return self.emitter.call(function, *args) if self.emitter else None

    def _narrowed(self, handle: fx.Node | None, dim: int, start: int, length: int) -> fx.Node | None:
        return self._call(torch.narrow, handle, dim, start, length)

    def _taken(self, handle: fx.Node | None, dim: int, places: Sequence[int]) -> fx.Node | None:
        if self.emitter is None or handle is None:
            return None
        return self.emitter.select(handle, dim, torch.tensor(places))

    # ---- operations

    def _counterpart(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            image = None
            if self.emitter:
                image = self.emitter.image.node
                if len(self.program.shapes[node]) == 4:
                    image = self.emitter.graph.call_method(
                        "contiguous", (image,), {"memory_format": torch.channels_last}
                    )
            return self._one(node, image)
        if node.op == "call_module":
            return self._module(node)
        if node.op == "call_function":
            handler = OPERATIONS.get(name_of(node))
            name = name_of(node)
            if handler in (elementwise, within_maps, reduced):
                return self._node_by_node(node, pools=handler is within_maps, reduces=handler is reduced)
            if name == "cat":
                return self._concatenated(node)
            if name == "narrow":
                return self._cut(node)
            if name == "reshape" and (flat := self._flattened(node)):
                return flat
        return self._copied(node)

    def _module(self, node: fx.Node) -> Value:
        module, source = self.program.modules[str(node.target)], node.args[0]
        assert isinstance(source, fx.Node)
        operation = self.program.operations.get(node)
        if node in self.program.gone or isinstance(module, _DROPS):
            value = self._values[source]
            return Value(node, value.dim, value.blocks)
        if isinstance(operation, Folded):
            return self._divided(node, operation, source)
        if isinstance(operation, Filters):
            return self._filtered(node, operation, source)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            return self._normalized(node, module, source)
        return self._copied(node)

    def _divided(self, node: fx.Node, operation: Folded, source: fx.Node) -> Value:
        dim = operation.call.dim(len(self.program.shapes[node]))
        value = self._along(source, dim)
        blocks: list[Block] = []
        for number, term in enumerate(self.forms[node]):
            read = self._read_by(node, operation, term, value)
            made = self._filled_up(operation, term)
            share, height = len(read.order) // term.groups, len(made) // term.groups
            self._charge(self.term_times(node, operation, rows=height, reads=share, groups=term.groups))
            handle = self._held(node, number, partial(fused_term, operation, term, made, read.order), read.handle)
            nodes = sum(term.rows)
            fill = len(made) - nodes.bit_count() if term.groups == 1 else 0
            blocks.append(Block(nodes, self._in_order(node, dim, handle, made[: len(made) - fill]), fill))
        return Value(node, dim, tuple(blocks))

    def _filled_up(self, operation: Folded, term: Term) -> tuple[int, ...]:
        """Return the rows that a term makes, with zeros after them if there will be several blocks of maps."""
        made = term.made()
        if term.groups > 1 or not operation.call.window or len(made) == operation.width:
            return made
        return (*made, *(-1,) * (-len(made) % self.lanes))

    def _read_by(self, node: fx.Node, operation: Folded, term: Term, value: Value) -> Read:
        """Return what a term reads: no more than that, or whole blocks against zeros where that takes less time."""
        kind_copies = operation.call.window > 0 or not self.costs.views
        if term.groups > 1:
            return self._read_in_groups(term, value)
        exact = term.reads[0]
        touched = sum(block.nodes for block in value.blocks if block.nodes & exact)
        if touched != exact:
            options = []
            for wanted in (exact, touched):
                pieces = sum(
                    len(runs_in(block.nodes & wanted, block.nodes)) for block in value.blocks if block.nodes & wanted
                )
                moves = pieces > 1 or (kind_copies and wanted == exact)
                copy = self._copying(value, pieces, wanted.bit_count())
                if not moves or (pieces > 1 and (value.node, value.dim, wanted, False) in self._reads):
                    copy = [0.0] * len(BATCHES)
                times = self.term_times(
                    node, operation, rows=term.rows[0].bit_count(), reads=wanted.bit_count(), groups=1
                )
                options.append([more + each for more, each in zip(copy, times, strict=True)])
            if sum(wide / narrow for narrow, wide in zip(*options, strict=True)) < len(BATCHES):
                exact = touched
        read = self._read(value, exact)
        if read.is_view and kind_copies:  # a convolution makes a copy of a view for itself
            self._charge(self._copying(value, 1, exact.bit_count()))
        return read

    def _read_in_groups(self, term: Term, value: Value) -> Read:
        everything = 0
        for reads in term.reads:
            everything |= reads
        read, wanted = self._read(value, everything, bare=True), term.read()
        if wanted == read.order:
            return read
        at = {place: number for number, place in enumerate(read.order)}
        places = [at.get(place, 0) for place in wanted]  # anything stands where a column of zeros reads it
        self._charge(self._copying(value, len(runs_of(places)), len(places)))
        return Read(self._taken(read.handle, value.dim, places), wanted)

    def _in_order(self, node: fx.Node, dim: int, handle: fx.Node | None, made: Sequence[int]) -> fx.Node | None:
        """Return the rows that a term has made in ascending order, without those that only fill up its groups."""
        order, runs = order_of(tuple(made))
        if runs == 1 and len(order) == len(made):
            return handle
        value = Value(node, dim, ())
        self._charge(self._copying(value, runs, len(order)))
        return self._taken(handle, dim, order)

    def _held(
        self, node: fx.Node, number: int, build: Callable[[], nn.Module], handle: fx.Node | None
    ) -> fx.Node | None:
        """Add a module for a part of an operation; a weight that is used twice may be divided in two ways."""
        path = f"{node.target}.{number}"
        if self.emitter is None:
            return None
        return self.emitter.module(f"{path}.{node.name}" if self.emitter.holds(path) else path, build, handle)

    def _filtered(self, node: fx.Node, operation: Filters, source: fx.Node) -> Value:
        value = self._along(source, 1)
        blocks = []
        for number, block in enumerate(value.blocks):
            nodes = (*members(block.nodes), *(-1,) * block.fill)
            self._charge(self.term_times(node, operation, rows=1, reads=1, groups=len(nodes)))
            handle = self._held(node, number, partial(fused_filters, operation, nodes), block.handle)
            blocks.append(Block(block.nodes, handle, block.fill))
        return Value(node, 1, tuple(blocks))

    def _normalized(self, node: fx.Node, module: Any, source: fx.Node) -> Value:
        value, rank, blocks = self._along(source, 1), len(self.program.shapes[node]), []
        for number, block in enumerate(value.blocks):
            nodes = members(block.nodes)
            self._follow(node, self.program.numbers(node, 1) * block.width)

            def build(nodes: tuple[int, ...] = nodes, fill: int = block.fill) -> nn.Module:
                with torch.no_grad():
                    factors, shifts = (F.pad(each[list(nodes)], (0, fill)) for each in affine(module))
                return FusedNorm(factors, shifts, rank)

            handle = self._held(node, number, build, block.handle)
            blocks.append(Block(block.nodes, handle, block.fill))
        return Value(node, 1, tuple(blocks))

    def _node_by_node(self, node: fx.Node, *, pools: bool, reduces: bool) -> Value:
        """Add an operation that treats each node alone, block by block."""
        shapes = self.program.shapes
        if node not in shapes:  # of several results
            return self._copied(node)
        operands = [each for each in node.all_input_nodes if each in shapes]
        in_blocks = [each for each in operands if len(self._values[each].blocks) > 1]
        dims = {self._values[each].dim for each in in_blocks}
        if len(dims) != 1:
            return self._copied(node)
        dim = dims.pop()
        at, rank = dim, len(shapes[node])
        if reduces:
            at = self._dim_left(node, operands[0], dim)
        elif any(len(shapes[each]) != rank for each in in_blocks) or (pools and dim != 1):
            at = -1
        width = shapes[in_blocks[0]][dim]
        if at < 0 or shapes[node][at] != width or (reduces and len(operands) > 1):
            return self._copied(node)
        shared = max((self._values[each] for each in in_blocks), key=lambda value: len(value.blocks))
        blocks = []
        for block in shared.blocks:
            reads = {}
            for each in operands:
                own = dim if reduces else dim - (rank - len(shapes[each]))
                if own >= 0 and shapes[each][own] == width:
                    reads[each] = self._along(each, own)
            bare = name_of(node) not in _FILL_HARMLESS or any(
                all((other.nodes, other.fill) != (block.nodes, block.fill) for other in value.blocks)
                for value in reads.values()
            )
            handles = {each: self._whole(each) for each in operands if each not in reads}
            handles |= {each: self._read(value, block.nodes, bare=bare).handle for each, value in reads.items()}
            made = Block(block.nodes, self._repeated(node, handles), 0 if bare else block.fill)
            self._follow(node, self.program.numbers(node, at) * made.width)
            blocks.append(made)
        return Value(node, at, tuple(blocks))

    def _dim_left(self, node: fx.Node, source: fx.Node, dim: int) -> int:
        """Return which dim of the result of a reduction is a dim of its source, -1 if it is gone."""
        rank = len(self.program.shapes[source])
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if given is None or given == []:
            return -1
        gone = {each % rank for each in ([given] if isinstance(given, int) else given)}
        if dim in gone:
            return -1
        return dim if len(self.program.shapes[node]) == rank else dim - len([each for each in gone if each < dim])

    def _concatenated(self, node: fx.Node) -> Value:
        operands: Any = node.args[0]
        given: Any = node.args[1] if len(node.args) > 1 else 0
        dim = given % len(self.program.shapes[node])
        values = [self._along(each, dim) for each in operands]
        count = sum(len(value.blocks) for value in values)
        if not len(values) < count <= _MOST_BLOCKS:
            return self._copied(node)
        blocks, offset = [], 0
        for each, value in zip(operands, values, strict=True):
            blocks += [Block(block.nodes << offset, block.handle, block.fill) for block in value.blocks]
            offset += self.program.shapes[each][dim]
        return Value(node, dim, tuple(blocks))

    def _cut(self, node: fx.Node) -> Value:
        arguments: Any = node.args
        source, dim, start, length = arguments
        value = self._values[source]
        if value.dim != dim or len(value.blocks) == 1:
            return self._copied(node)
        wanted = first(length) << start
        blocks = []
        for block in value.blocks:
            if part := block.nodes & wanted:
                read = self._read(value, part, bare=True)
                blocks.append(Block(part >> start, read.handle))
        return Value(node, dim, tuple(blocks))

    def _flattened(self, node: fx.Node) -> Value | None:
        """Return the blocks of maps of which each position is read by itself; None where that is not what is done."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        value, shape = self._values[source], self.program.shapes[source]
        positions = self.program.numbers(source, 1) if len(shape) > 2 else 0
        if value.dim != 1 or len(value.blocks) < 2 or self.program.shapes[node] != (1, shape[1] * positions):
            return None
        blocks = []
        for block in value.blocks:
            width = block.nodes.bit_count() * positions
            bare = self._read(value, block.nodes, bare=True).handle
            handle = self._call(torch.ops.aten.reshape.default, bare, [-1, width])
            blocks.append(Block(spread(block.nodes, positions), handle))
        return Value(node, 1, tuple(blocks))

    def _copied(self, node: fx.Node) -> Value:
        """Add the same operation on whole values."""
        if node in self.program.shapes and name_of(node) not in _FREE and node.op == "call_function":
            shape = self.program.shapes[node]
            self._follow(node, self.program.numbers(node, 0) * shape[0] if shape else 1)
        handles = {each: self._whole(each) for each in node.all_input_nodes}
        return self._one(node, self._repeated(node, handles))

    def _repeated(self, node: fx.Node, handles: Mapping[fx.Node, fx.Node | None]) -> fx.Node | None:
        if self.emitter is None:
            return None
        args = fx.node.map_arg(node.args, lambda each: handles[each])
        kwargs = fx.node.map_arg(node.kwargs, lambda each: handles[each])
        if node.op == "get_attr":
            value: Any = self.program.body
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return self.emitter.constant(value.detach().clone())
        if node.op == "call_module":
            path = str(node.target)
            return self.emitter.module(path, partial(copy.deepcopy, self.program.modules[path]), *args)
        if node.op == "call_method":
            return self.emitter.graph.call_method(str(node.target), args, kwargs)
        return self.emitter.call(node.target, *args, **kwargs)  # type: ignore[arg-type]
