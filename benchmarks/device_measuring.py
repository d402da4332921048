"""What the parts of the device check share: the clock, the rows, made-up images, networks and their steps."""

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import Part, Preprocessing, Splits
from nas_blockout.experiment import Experiment, build
from nas_blockout.methods import method_from_json
from nas_blockout.training_protocol import TrainableModel

Call = Callable[[], Any]
SHAPE, CLUSTERS, SEEDS = (3, 32, 32), 6, 5
HALF, COMPILED = "bf16 channels_last", "bf16 channels_last compiled"


@dataclass(frozen=True, slots=True)
class Check:
    """What a part is given: where to run, until when, where its rows go; `warm` is only to compile for later parts."""

    device: str
    quick: bool
    rows: Path
    data: Path | None
    deadline: float = 0.0
    warm: bool = False

    def row(self, table: str, **cells: object) -> None:
        if not self.warm:  # written at once, so that it outlives the process
            with self.rows.open("a") as file:
                file.write(json.dumps([table, cells]) + "\n")

    def left(self) -> float:
        if (seconds := self.deadline - time.monotonic()) <= 0:
            raise TimeoutError("cut short at its deadline")
        return seconds

    @contextlib.contextmanager
    def attempt(self, *what: object) -> Iterator[None]:
        self.left()
        try:
            yield
        except Exception as error:
            if isinstance(error, TimeoutError):
                raise
            self.row("0 failures", what=", ".join(map(str, what)), error=last_line(error))

    def seconds(self, call: Call, times: int = 1) -> float:
        """Return the time of one call, the mean of some in a row."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.device == "cuda" else []
        began = torch.cuda.synchronize() if marks else time.perf_counter()
        [mark.record() for mark in marks[:1]]  # type: ignore[no-untyped-call]
        for _ in range(times):
            call()
        if not marks:
            return (time.perf_counter() - began) / times  # type: ignore[operator]
        marks[1].record()
        torch.cuda.synchronize()
        return float(marks[0].elapsed_time(marks[1])) / 1e3 / times  # type: ignore[no-untyped-call]

    def compare(self, table: str, cells: Mapping[str, Any], forms: Mapping[str, Any], left: Any = None) -> Any:
        """Make all forms, let them take turns, and return the seconds of the first and the others over it.

        With shares of work that are `left`, a ratio is followed by the time saved over the work saved; else by memory.
        """
        calls, notes = dict[str, Call](), {}
        for name, make in forms.items():
            with self.attempt(table, *cells.values(), name):
                torch._dynamo.utils.counters.clear()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats() if self.device == "cuda" else None
                call = make()
                call(), call()
                broken = sum(torch._dynamo.utils.counters["graph_break"].values())
                memory = f", {(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB" * (left is None)
                calls[name], notes[name] = call, memory + f", {broken} graph breaks" * (broken > 0)
        if self.warm or not calls:
            return {}
        times = {name: min(50, max(1, round(0.004 / self.seconds(call)))) for name, call in calls.items()}
        rounds: dict[str, list[float]] = {name: [] for name in calls}
        first, until = next(iter(calls)), time.monotonic() + 0.15 * len(calls)
        while len(rounds[first]) < 5 or (time.monotonic() < until and len(rounds[first]) < 200):
            for name, call in calls.items():
                rounds[name].append(self.seconds(call, times[name]))
            self.left()
        found = {n: statistics.median(a / b for a, b in zip(rounds[n], rounds[first], strict=True)) for n in calls}
        shown = {n: f"{over:.3f}{notes[n]}" for n, over in found.items()}
        shown |= {n: f"{found[n]:.3f} ({(1 - found[n]) / (1 - left[n]):.2f})" for n in list(calls)[1:] if left}
        found[first] = statistics.median(rounds[first])
        rate = {"a second": cells["batch"] / found[first]} if "batch" in cells else {}
        self.row(table, **cells, **shown | {first: f"{1e3 * found[first]:.4g} ms{notes[first]}"} | rate)
        return found


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {next((s for s in lines if 'CUDA error' in s), lines[-1])}"[:160].replace("|", "/")


def synthetic(shape: Any, count: int, device: str, classes: int = 10) -> Any:
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    part = Part(images, torch.arange(count) % classes).to(device)
    plan = Preprocessing(*shape, mean=(0.5,) * shape[0], std=(0.3,) * shape[0])
    names, few = tuple(map(str, range(classes))), Part(part.images[:256], part.labels[:256])
    return Splits(part, few, preprocessing=plan, class_names=names, load_test=NotImplemented)


def network(check: Check, backbone: Any, splits: Splits, seed: int = 0, **method: object) -> Any:
    if check.quick and not isinstance(backbone, ConvNetSettings):
        backbone = replace(backbone, width=0.125, hidden=tuple(min(32, width) for width in backbone.hidden))
    experiment = Experiment(backbone=backbone, method=method_from_json({"name": "none"} | method), seed=seed)
    return build(experiment, splits).to(check.device).train()


def stepping(check: Check, model: Any, part: Part, batch: int, form: str = "fp32") -> tuple[Call, Any]:
    """Return a training step on shuffled images, which gives its loss and waits for nothing, and its optimiser."""
    layout = torch.channels_last if HALF in form else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    generator = torch.Generator(check.device).manual_seed(0)
    given = (generator,) if any("nas_blockout.methods" in type(each).__module__ for each in model.modules()) else ()

    def loss(x: Tensor, y: Tensor) -> Any:
        return (
            model.loss(x, y, generator) if isinstance(model, TrainableModel) else F.cross_entropy(model(x, *given), y)
        )

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(part), device=part.images.device)
            yield from order[: len(part) // batch * batch].split(batch)

    find, numbers = torch.compile(loss) if COMPILED in form else loss, batches()

    def step() -> Any:
        index = next(numbers)
        with torch.autocast(check.device, torch.bfloat16, enabled=HALF in form):
            value = find(part.images[index].contiguous(memory_format=layout).to(check.device), part.labels[index])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return step, optimizer
