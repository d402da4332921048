"""What a graph is expected to take while the form of one operation after the other is weighed.

Another form of one operation changes what is expected of itself and of the operations after it, until their results
stand in the same blocks as before. Only those are walked over anew, and what was once found of an operation under the
same circumstances is kept: on a large network a thousand forms are weighed, most of which change a few nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from torch import fx

from nas_blockout.backbones.inference_cost import BATCHES, Costs
from nas_blockout.graph.forms.blocks import Read, ReadKey, Value
from nas_blockout.graph.forms.terms import Form
from nas_blockout.graph.forms.traversal import Traversal
from nas_blockout.graph.forms.values import Program


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What a walk does at one node; the same object under the same circumstances.

    Args:
        value: Its result; None at the output.
        layout: Equal for results that stand in equal blocks.
        reads: Values that are put together here and were not before, which later nodes have for nothing.
        times: Expected microseconds, for one image and for many.
    """

    value: Value | None
    layout: int
    reads: Mapping[ReadKey, Read]
    times: Sequence[float]


class Expectation:
    """Expected times of a graph, as a walk over all of it would add them up.

    Args:
        program: The graph.
        costs: Of the runtime.
        lanes: To a multiple of which blocks of maps are filled up.

    Attributes:
        forms: Of each operation, as taken last.
        times: Microseconds expected of them, for one image and for many.
    """

    def __init__(self, program: Program, costs: Costs, lanes: int) -> None:
        self.forms: dict[fx.Node, Form] = {}
        self.times = [0.0] * len(BATCHES)
        self._walk = Traversal(program, self.forms, costs, lanes=lanes)
        self._nodes = list(program.body.graph.nodes)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._sources = {node: node.all_input_nodes for node in self._nodes}
        self._readers = {node: sorted(self._places[user] for user in node.users) for node in self._nodes}
        self._steps: dict[fx.Node, _Step] = {}
        self._known: dict[object, _Step] = {}
        self._layouts: dict[object, int] = {}

    def take_all(self, forms: Mapping[fx.Node, Form]) -> list[float]:
        """Take a form of each operation, and return the expected times."""
        self.forms.clear()
        self.forms.update(forms)
        self._steps = {}
        for node in self._nodes:
            self._steps[node] = self._step(node, {})
        self.times = [sum(each) for each in zip(*(step.times for step in self._steps.values()), strict=True)]
        return self.times

    def times_with(self, node: fx.Node, form: Form) -> list[float]:
        """Return the expected times if one operation had another form."""
        return self._added(self._changed(node, form))

    def take(self, node: fx.Node, form: Form) -> None:
        """Take another form of one operation."""
        changed = self._changed(node, form)
        self.times = self._added(changed)
        self.forms[node] = form
        self._steps |= changed

    def _added(self, changed: Mapping[fx.Node, _Step]) -> list[float]:
        times = list(self.times)
        for node, step in changed.items():
            times = [
                have + new - old for have, new, old in zip(times, step.times, self._steps[node].times, strict=True)
            ]
        return times

    def _changed(self, node: fx.Node, form: Form) -> dict[fx.Node, _Step]:
        """Return the steps that differ if one operation has another form."""
        before, self.forms[node] = self.forms[node], form
        changed: dict[fx.Node, _Step] = {}
        waiting, last = [self._places[node]], -1
        while waiting:
            place = heappop(waiting)
            if place == last:
                continue
            last, at = place, self._nodes[place]
            step, old = self._step(at, changed), self._steps[at]
            if step is old:
                continue
            changed[at] = step
            if step.layout != old.layout:
                self._wait(waiting, at, place)
            if step.reads.keys() != old.reads.keys():  # those after it have other values for nothing
                for source in self._sources[at]:
                    self._wait(waiting, source, place)
        self.forms[node] = before
        return changed

    def _wait(self, waiting: list[int], source: fx.Node, place: int) -> None:
        for reader in self._readers[source]:
            if reader > place:
                heappush(waiting, reader)

    def _step(self, node: fx.Node, changed: Mapping[fx.Node, _Step]) -> _Step:
        """Return what a walk does at a node, after some steps that differ from those taken."""
        sources, place = self._sources[node], self._places[node]
        steps = [changed.get(source) or self._steps[source] for source in sources]
        there: dict[ReadKey, Read] = {}
        for source in sources:
            for reader in self._readers[source]:
                if reader >= place:
                    break
                other = self._nodes[reader]
                reads = (changed.get(other) or self._steps[other]).reads
                there |= {key: read for key, read in reads.items() if key[0] is source} if reads else {}
        key = (node, self.forms.get(node), tuple(step.layout for step in steps), frozenset(there))
        if key not in self._known:
            values = {source: step.value for source, step in zip(sources, steps, strict=True) if step.value}
            value, reads, times = self._walk.step(node, values, there)
            self._known[key] = _Step(value, self._layout(value), reads, times)
        return self._known[key]

    def _layout(self, value: Value | None) -> int:
        blocks = (value.dim, *((block.nodes, block.fill) for block in value.blocks)) if value else ()
        return self._layouts.setdefault(blocks, len(self._layouts))
