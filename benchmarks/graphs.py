"""How long branched graphs take to run and to export, beside the dense network that they came from.

`python -m benchmarks.graphs forms --network resnet18 --memberships alone` draws memberships, derives the branched
network, and measures its forms for inference. All take turns in every round, in an order drawn anew; what counts is the
time of the processor, since others may use the machine. The parent is the dense network in the same form: normalization
folded in, channels last.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.export.models import _program, _quiet, _write_onnx
from nas_blockout.graph.analysis import CLASSES, GraphAnalysis, analyze
from nas_blockout.graph.branched import branch
from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.networks import Runtime

_CLASSES = 10
Run = Callable[[Tensor], Any]


class _Images(nn.Module):
    """A network whose argument has the name that exported models give it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def memberships_of(analysis: GraphAnalysis, kind: str, clusters: int, seed: int) -> dict[str, Tensor]:
    """Return memberships drawn at random: ``alone`` for one cluster a node, ``half`` for each with probability .5."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in analysis.layers:
        if kind == "alone":
            rows = F.one_hot(torch.randint(clusters, (layer.width,), generator=generator), clusters)
        else:
            rows = torch.rand(layer.width, clusters, generator=generator) < 0.5
        whole = layer.rigid is not None or (kind == "alone" and layer.name == CLASSES)
        found[layer.name] = torch.ones_like(rows).float() if whole else rows.float()
    return found


def exported(network: nn.Module, side: int, folder: Path) -> tuple[Run, dict[str, float]]:
    """Write both forms of a network; return the ONNX one as a function, and the seconds and sizes of the export."""
    import onnxruntime

    example, began = torch.rand(2, 3, side, side), (time.perf_counter(), time.process_time())
    with _quiet():
        program = _program(_Images(network).eval(), example)
        torch.export.save(program, folder / "model.pt2")
        _write_onnx(program, folder / "model.onnx", example, {})
    seconds = {
        "wall_s": time.perf_counter() - began[0],
        "cpu_s": time.process_time() - began[1],
        "nodes": len(program.graph.nodes),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0], seconds


def measured(runs: Mapping[str, Run], side: int, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Return milliseconds of the processor by network and batch: of each round, the least of several passes."""
    draws, names = np.random.default_rng(0), list(runs)
    times: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in batches} for name in names}
    for _ in range(rounds):
        for name in (names[place] for place in draws.permutation(len(names))):
            for batch in batches:
                images = torch.rand(batch, 3, side, side)
                runs[name](images)
                times[name][batch].append(min(_pass(runs[name], images) for _ in range(10 if batch == 1 else 3)))
    parent = times["parent"]
    return {
        name: {
            str(batch): {
                "ms": round(median(found), 2),
                "least": round(min(found), 2),
                "most": round(max(found), 2),
                "ratio": round(median(mine / its for mine, its in zip(found, parent[batch], strict=True)), 3),
            }
            for batch, found in by_batch.items()
        }
        for name, by_batch in times.items()
    }


def _pass(run: Run, images: Tensor) -> float:
    began = time.process_time()
    run(images)
    return 1000 * (time.process_time() - began)


@torch.no_grad()
def forms(options: argparse.Namespace) -> None:
    """Print the times of the forms of one network in both runtimes, as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    network = torchvision.models.get_model(options.network, num_classes=_CLASSES).eval()
    analysis = analyze(network, (3, options.side, options.side))
    state = network.state_dict()
    dense = branch(analysis, {layer.name: torch.ones(layer.width, 1) for layer in analysis.layers}, state).eval()
    memberships = memberships_of(analysis, options.memberships, options.clusters, options.seed)
    branched = branch(analysis, memberships, state).eval()
    share = branched.macs() / dense.macs()
    print(json.dumps({**vars(options), "macs": round(share, 3), "bundles": branched.bundle_count}, default=str))
    for runtime in get_args(Runtime):
        began = time.process_time()
        chosen = branched.for_inference(runtime=runtime, batch=options.expected)
        networks: dict[str, nn.Module] = {
            "parent": dense.for_inference(operations="whole", runtime=runtime),
            "fastest": chosen,
            "whole": branched.for_inference(operations="whole", runtime=runtime),
        }
        print(json.dumps({"runtime": runtime, "choice_and_building_cpu_s": round(time.process_time() - began, 2)}))
        runs: dict[str, Run] = dict(networks)
        if runtime == "torch":
            runs["bundles"] = branched
        else:
            with tempfile.TemporaryDirectory() as folder:
                made = {name: exported(each, options.side, Path(folder)) for name, each in networks.items()}
            runs = {name: run for name, (run, _) in made.items()}
            print(json.dumps({"export": made["fastest"][1]}))
        times = measured(runs, options.side, options.batches, options.rounds)
        for name, found in times.items():
            saved = {batch: round((1 - value["ratio"]) / (1 - share), 2) for batch, value in found.items()}
            print(json.dumps({"runtime": runtime, "form": name, **found, "saved_of_macs": saved}), flush=True)
    print(json.dumps({"load": os.getloadavg()}))


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["forms"])
    parser.add_argument("--network", default="resnet18", help="name of a model of torchvision")
    parser.add_argument("--memberships", choices=["alone", "half"], default="alone")
    parser.add_argument("--clusters", type=int, default=3)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--expected", type=int, default=None, help="images at a time that forms are chosen for")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    forms(parser.parse_args())


if __name__ == "__main__":
    main()
