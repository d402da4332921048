"""The form of a branched graph that is only run, chosen by the time that it is expected to take."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from nas_blockout.backbones.inference import NUMBERS_AT_ONCE
from nas_blockout.backbones.inference_cost import BATCHES, COSTS, LANES, LEAST_SAVED, MARGIN, Costs, time_at
from nas_blockout.graph.forms.expectation import Expectation
from nas_blockout.graph.forms.folded_operations import Folded
from nas_blockout.graph.forms.terms import Division, Form, FusedTerm, Term, form_of, forms_of
from nas_blockout.graph.forms.traversal import Traversal
from nas_blockout.graph.forms.values import Program, program_of
from nas_blockout.graph.rewrite.emitter import Emitter
from nas_blockout.networks import Runtime
from nas_blockout.randomness.draws import Randomness

# Blocks of maps are filled up with zeros to so many channels where that was measured to save time: with 16 images three
# branches of ResNet-18 took .67 of the dense time in onnxruntime as they were, .52 filled up; in PyTorch .50 and .52.
_FILLED_TO: Mapping[Runtime, int] = {"torch": 1, "onnxruntime": LANES}
_SWEEPS = 3  # over all operations, until none takes another form
_IN_PLACE = {
    torch.ops.aten.relu.default: torch.ops.aten.relu_.default,
    torch.ops.aten.hardswish.default: torch.ops.aten.hardswish_.default,
    torch.ops.aten.silu.default: torch.ops.aten.silu_.default,
}

Forms = dict[fx.Node, Form]


class FusedGraph(nn.Module):
    """A branched graph to be run, not trained; eval mode only.

    Args:
        body: The graph and its modules.
        numbers: Of the largest value of one image.

    On the CPU many images pass some at a time, so that no value is so large that its memory has to come from the system
    anew; an exported or compiled program takes all of them at once.
    """

    def __init__(self, body: fx.GraphModule, numbers: int) -> None:
        super().__init__()
        self.body = body
        self.images_at_once = max(1, NUMBERS_AT_ONCE // numbers)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits in the order of the classes, shape ``(batch, classes)``."""
        if torch.compiler.is_compiling() or x.device.type != "cpu" or len(x) <= self.images_at_once:
            logits: Tensor = self.body(x)
            return logits
        return torch.cat([self.body(images) for images in x.split(self.images_at_once)])


def fused_graph(
    body: fx.GraphModule,
    shape: tuple[int, ...],
    *,
    division: Division = "fastest",
    runtime: Runtime = "torch",
    batch: int | None = None,
) -> FusedGraph:
    """Return a copy of a branched graph to be run.

    Args:
        body: The graph and its modules.
        shape: Of one image.
        division: How its operations are divided; ``fastest`` for what is expected to take least time.
        runtime: What runs it.
        batch: Images that are expected at a time; None for one as well as many.
    """
    device = next((each.device for each in body.parameters()), torch.device("cpu"))
    program, lanes = program_of(copy.deepcopy(body).cpu(), shape), _FILLED_TO[runtime]
    if division == "fastest":
        forms = fastest(program, COSTS[runtime], lanes=lanes, batch=batch)
    else:
        forms = {node: form_of(each, division) for node, each in program.operations.items() if isinstance(each, Folded)}
    emitter = Emitter(shape)
    walk = Traversal(program, forms, COSTS[runtime], emitter, lanes=lanes)
    logits = walk.run()
    emitter.graph.output(logits)
    _write_in_place(emitter.graph, emitter.root)
    new = fx.GraphModule(emitter.root, emitter.graph)
    new.graph.eliminate_dead_code()
    new.graph.lint()
    new.recompile()
    new.delete_all_unused_submodules()
    return FusedGraph(new, max(torch.Size(sizes).numel() for sizes in program.shapes.values())).to(device)


def fastest(program: Program, costs: Costs, *, lanes: int, batch: int | None = None) -> Forms:
    """Return the form of each operation with which the graph is expected to take little time.

    From the best of three, all operations whole, all divided as far as that saves time of each alone, and all divided
    as far as they can be, one after the other takes the form that saves most, as long as any does. What is found so is
    taken only if the graph is expected to take less than the dense network that it came from, or than with all
    operations whole if that takes more: less by as much as such expectations are wrong.

    Args:
        program: The graph.
        costs: Of the runtime.
        lanes: To a multiple of which blocks of maps are filled up.
        batch: Images that are expected at a time; None for one as well as many.
    """
    counted = BATCHES if batch is None else (batch,)
    operations = {node: each for node, each in program.operations.items() if isinstance(each, Folded)}
    prices = Traversal(program, {}, costs)

    def alone(node: fx.Node, operation: Folded, term: Term) -> float:
        rows, reads = term.size
        times = prices.term_times(node, operation, rows=rows, reads=reads, groups=term.groups)
        return sum(time_at(images, times) / images for images in counted)

    options = {
        node: forms_of(operation, lambda term, n=node, o=operation: alone(n, o, term))  # type: ignore[misc]
        for node, operation in operations.items()
    }
    whole: Forms = {node: forms[0] for node, forms in options.items()}
    divided = {
        node: min(forms, key=lambda form, n=node: sum(alone(n, operations[n], term) for term in form))  # type: ignore[misc]
        for node, forms in options.items()
    }
    expected = Expectation(program, costs, lanes)
    times = expected.take_all(whole)
    bounds = [max(pair) for pair in zip(times, _parent(program, whole, times, costs), strict=True)]

    def shares(times: Sequence[float]) -> list[float]:
        return [time_at(images, times) / time_at(images, bounds) for images in counted]

    starts = (whole, divided, {node: max(forms, key=len) for node, forms in options.items()})
    best = min(starts, key=lambda forms: sum(shares(expected.take_all(forms))))
    taken = sum(shares(expected.take_all(best)))
    for _ in range(_SWEEPS):
        before = taken
        for node, forms in options.items():
            for form in forms:
                if form != expected.forms[node] and (found := sum(shares(expected.times_with(node, form)))) < taken:
                    expected.take(node, form)
                    taken = found
        if before - taken < LEAST_SAVED * len(counted):
            break
    return expected.forms if max(shares(expected.times)) <= 1 - MARGIN else whole


def _parent(program: Program, whole: Forms, times: Sequence[float], costs: Costs) -> Sequence[float]:
    """Return the expected times of the dense network: what its operations take more than the whole ones, added."""
    prices = Traversal(program, whole, costs)
    for node, operation in program.operations.items():
        if not isinstance(operation, Folded):
            continue
        rows, inputs, groups = operation.original
        (term,) = whole[node]
        dense = prices.term_times(node, operation, rows=rows // groups, reads=inputs // groups, groups=groups)
        own = prices.term_times(
            node, operation, rows=term.rows[0].bit_count(), reads=term.reads[0].bit_count(), groups=1
        )
        times = [have + more - less for have, more, less in zip(times, dense, own, strict=True)]
    return times


def _write_in_place(graph: fx.Graph, root: nn.Module) -> None:
    """Let activations write over what they alone read, where that has memory of its own."""
    for node in graph.nodes:
        made = _IN_PLACE.get(node.target) if node.op == "call_function" else None
        source = node.args[0] if made is not None else None
        if not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        is_term = source.op == "call_module" and isinstance(root.get_submodule(str(source.target)), FusedTerm)
        if is_term or source.target in (torch.ops.aten.add.Tensor, torch.cat):
            node.target = made
