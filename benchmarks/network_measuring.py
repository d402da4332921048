"""One network of many kinds, masked and branched: what is known of it, how equal both are, its time, its files.

What `benchmarks.networks` runs for each of them, in a process of its own.
"""

import copy
import importlib
import itertools
import logging
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas_blockout.backbones.inception import Inception, InceptionSettings
from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.export.latency import for_inference
from nas_blockout.export.onnx_graph import onnx_program
from nas_blockout.graph.analysis import GraphAnalysis, analyze
from nas_blockout.graph.branched import branch, settled
from nas_blockout.graph.rewrite.training_layers import AttentionWithDropout
from nas_blockout.networks import Connection, Runtime
from tests.nas_blockout.graph.masked_networks import estimating, masked_weights, random_memberships

CLASSES = 10
CLUSTERS, PROBABILITY = 3, 0.5
BOUND = 1e-10  # of differences, as a share of the largest logit if that is above 1
SPREAD = 1e-4  # of logits between images: below, equality would say nothing
IMAGES, ESTIMATED_ON = 3, 8
COUNTS = (1, IMAGES)  # images at a time that files are run on
ROUNDS, PASSES = 15, 3
NOISE = 0.2


@dataclass(frozen=True, slots=True)
class Named:
    """A network by name.

    Args:
        build: Makes it, for ten classes.
        side: Of its images, in pixels.
        seeds: Random memberships to try.
    """

    build: Callable[[], nn.Module]
    side: int = 64
    seeds: int = 2


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from nas_blockout.lazy_torchvision import torchvision  # two seconds, which only some networks need

        network: nn.Module = getattr(torchvision.models, name)(num_classes=CLASSES, **arguments)
        return network

    return build


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        importlib.import_module("nas_blockout.lazy_torchvision")  # timm imports torchvision, which may need its door
        network: nn.Module = importlib.import_module("timm").create_model(name, num_classes=CLASSES, **arguments)
        return network

    return build


# Cheap ones first.
NETWORKS: Mapping[str, Named] = {
    "resnet18": Named(_torchvision("resnet18"), seeds=3),
    "our resnet, depth 18, 512-512": Named(
        lambda: ResNet(ResNetSettings(depth=18, hidden=(512, 512)), (3, 32, 32), CLASSES), 32
    ),
    "shufflenet_v2_x0_5": Named(_torchvision("shufflenet_v2_x0_5"), seeds=3),
    "mobilenet_v3_small": Named(_torchvision("mobilenet_v3_small"), seeds=3),
    "timm: resnet10t": Named(_timm("resnet10t")),
    "timm: vit_tiny_patch16_224": Named(_timm("vit_tiny_patch16_224", img_size=64)),
    "timm: convnext_atto": Named(_timm("convnext_atto")),
    "timm: mobilenetv4_conv_small": Named(_timm("mobilenetv4_conv_small")),
    "timm: repvgg_a0": Named(_timm("repvgg_a0")),
    "our inception, 512-512": Named(lambda: Inception(InceptionSettings(hidden=(512, 512)), (3, 32, 32), CLASSES), 32),
    "googlenet": Named(_torchvision("googlenet", init_weights=False, aux_logits=False)),
    "efficientnet_b0": Named(_torchvision("efficientnet_b0")),
    "swin_t": Named(_torchvision("swin_t")),
    "convnext_tiny": Named(_torchvision("convnext_tiny")),
    "densenet121": Named(_torchvision("densenet121")),
    "inception_v3": Named(_torchvision("inception_v3", init_weights=False, aux_logits=False), 96),
    "vgg16_bn": Named(_torchvision("vgg16_bn"), seeds=1),
    "regnet_y_400mf": Named(_torchvision("regnet_y_400mf"), seeds=1),
    "resnext50_32x4d": Named(_torchvision("resnext50_32x4d"), seeds=1),
    "vit_b_16": Named(_torchvision("vit_b_16"), 224, seeds=1),
}
Row = dict[str, Any]


# ---- one network


def measured(named: Named) -> Iterator[tuple[str, Row]]:
    """Yield what is next, and what was found until then.

    Raises:
        AssertionError: The networks are unequal, or equality says nothing.
    """
    yield "the network", {}
    torch.manual_seed(0)
    network = varied(named.build().double().eval())
    shape = (3, named.side, named.side)
    row: Row = {"side": named.side, "parameters": sum(each.numel() for each in network.parameters())}
    yield "the analysis", row
    began = time.process_time()
    analysis = settled(analyze(network, shape))
    row = {"analysis_seconds": time.process_time() - began, **_told(analysis)}
    yield "equality", row
    for seed in range(named.seeds):
        memberships = random_memberships(analysis, CLUSTERS, itertools.repeat(PROBABILITY), seed=seed)
        found, state = compared(network, analysis, memberships, seed=seed)
        yield f"equality under other memberships than those of seed {seed}", {"seeds": [seed], **found}
        if seed == 0:
            first = memberships, {key: _single(value) for key, value in state.items()}
    memberships, state = first
    branched = branch(analysis, memberships, state).eval()
    everything = {layer.name: torch.ones(layer.width, 1) for layer in analysis.layers}
    parent = branch(analysis, everything, state).eval().for_inference(operations="whole")
    del network, analysis
    yield "the choice of a form", {}
    began = time.process_time()
    forms = {runtime: for_inference(branched, runtime=runtime) for runtime in get_args(Runtime)}
    yield "time", {"choice_seconds": time.process_time() - began}
    yield "the export to .pt2", timed(parent, forms["torch"], drawn(1, shape, seed=5).float())
    del parent
    images = drawn(IMAGES, shape, seed=7).float()
    with torch.no_grad():
        logits = [branched(images[:count]) for count in COUNTS]
    row = {"largest_single": float(logits[-1].abs().max())}
    with tempfile.TemporaryDirectory() as folder, quiet():
        row |= exported(forms["torch"], images, logits, Path(folder) / "network.pt2")
        yield "the export to ONNX", row
        row = onnx_exported(forms["onnxruntime"], images, logits, Path(folder) / "network.onnx")
        yield "", row | {"load": os.getloadavg()[0]}


def varied(network: nn.Module) -> nn.Module:
    """Add noise to parameters all of whose values are the same, as of norms, biases and layer scales."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1 and float(parameter.max() - parameter.min()) == 0:
                parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network


def drawn(number: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Return images of noise."""
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _told(analysis: GraphAnalysis) -> Row:
    macs = sum(_macs(each) for each in analysis.connections) + sum(each.macs for each in analysis.unmasked)
    between = sum(_macs(each) * _between_nodes(each) for each in analysis.connections)
    reasons: dict[str, int] = {}
    for reason in analysis.rigid.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "weights": len(analysis.connections),
        "depthwise": sum(each.filters_each_node_alone for each in analysis.connections),
        "layers": len(analysis.layers),
        "rigid": len(analysis.rigid),
        "rigid_because": "; ".join(f"{reason} ({count})" for reason, count in reasons.items()),
        "macs": macs,
        "maskable": between / macs,
    }


def _macs(connection: Connection) -> int:
    return math.prod(connection.shape) * connection.positions


def _between_nodes(connection: Connection) -> float:
    """Return the share of a weight that reads nodes, in [0, 1]."""
    if connection.source_nodes is None:
        return 0.0
    return statistics.fmean(identity is not None for identity in connection.source_nodes.identities)


@torch.no_grad()
def compared(
    network: nn.Module, analysis: GraphAnalysis, memberships: Mapping[str, Tensor], *, seed: int
) -> tuple[Row, dict[str, Tensor]]:
    """Return how far the masked and the branched network differ, and the state of the masked one.

    The network's statistics are estimated under the mask; it is in eval mode afterward.
    """
    state = {
        **network.state_dict(),
        **masked_weights(analysis.connections, memberships, network.state_dict()),
    }
    with estimating(network):
        if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in network.modules()):
            functional_call(network, state, (drawn(ESTIMATED_ON, analysis.shape, seed=seed + 100),))
    state = {name: value.clone() for name, value in state.items()}  # training changes statistics in place
    began = time.process_time()
    branched = branch(analysis, memberships, state).eval()
    row: Row = {"rewrite_seconds": time.process_time() - began}
    x = drawn(IMAGES, analysis.shape, seed=seed)
    expected, actual = functional_call(network, state, (x,)), branched(x)
    row["error"] = _difference(actual, expected)
    row["spread"] = float(expected.std(0).max())
    row["largest"] = float(expected.abs().max())
    name, others = changed(analysis, memberships)
    touching = [each for each in analysis.connections if name in each.layers]
    other = {**state, **masked_weights(touching, others, network.state_dict())}
    row["control"] = _difference(functional_call(network, other, (x,)), actual)
    del other
    trained = {name: value.clone() for name, value in state.items()}
    dense, own = without_drops(copy.deepcopy(network)), without_drops(copy.deepcopy(branched))
    expected = functional_call(dense, trained, (x,))
    row["error_training"] = _difference(own(x), expected)
    row["largest_training"] = float(expected.abs().max())
    row |= {"bundles": branched.bundle_count, "constants": branched.constant_count}
    row |= {"macs_share": branched.macs() / sum(map(_macs, analysis.connections))}
    for kind in ("", "_training"):
        bound = BOUND * max(1.0, row[f"largest{kind}"])
        if not row[f"error{kind}"] <= bound:
            raise AssertionError(f"seed {seed}: logits differ by {row[f'error{kind}']:.1e}{kind}, bound {bound:.1e}")
    if not row["spread"] > SPREAD:
        raise AssertionError(f"seed {seed}: logits hardly differ between images: {row['spread']:.1e}")
    if not row["control"] > 100 * max(row["error"], 1e-15):
        raise AssertionError(f"seed {seed}: another membership of {name} makes no difference: {row['control']:.1e}")
    return row, state


def changed(analysis: GraphAnalysis, memberships: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Return a layer in the middle of a network, and memberships in which one of a node of it is another one."""
    free = [layer.name for layer in analysis.layers if layer.rigid is None]
    name = free[(len(free) - 1) // 2]
    rows = memberships[name].clone()
    node = int(rows.sum(1).argmax())
    rows[node, 0] = 1 - rows[node, 0]
    return name, {**memberships, name: rows}


def without_drops(network: nn.Module) -> nn.Module:
    """Put a network into training mode, but for what drops values, paths or entries of attention at random."""
    network.train()
    for module in network.modules():
        kind = type(module).__name__
        if "Drop" in kind or "StochasticDepth" in kind or isinstance(module, AttentionWithDropout):
            module.eval()
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return network


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# ---- in single precision


@torch.no_grad()
def timed(parent: nn.Module, branched: nn.Module, image: Tensor) -> Row:
    """Return CPU milliseconds of one image: both take turns in rounds of random order, the least of passes counts."""
    draws, forms = random.Random(0), {"dense": parent, "branched": branched}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(-1, ROUNDS):
        for name in draws.sample(list(forms), len(forms)):
            taken = min(_pass(forms[name], image) for _ in range(PASSES))
            if turn >= 0:
                times[name].append(1000 * taken)
    ratios = [branched / dense for branched, dense in zip(times["branched"], times["dense"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    row: Row = {f"{name}_milliseconds": statistics.median(taken) for name, taken in times.items()}
    return row | {"time": middle, "time_low": low, "time_high": high, "rounds": ROUNDS}


def _pass(network: nn.Module, image: Tensor) -> float:
    began = time.thread_time()  # under a limit of CPU time the clock of a process stands still between two ticks
    network(image)
    return time.thread_time() - began


@torch.no_grad()
def exported(network: nn.Module, images: Tensor, logits: Sequence[Tensor], path: Path) -> Row:
    """Write a network with any number of images as ``.pt2``; return the seconds and how far its logits differ."""
    began = time.process_time()
    program = _program(network, images)
    torch.export.save(program, path)
    row: Row = {"pt2_seconds": time.process_time() - began, "pt2_megabytes": path.stat().st_size / 1e6}
    row["pt2_operations"] = len(program.graph.nodes)
    module = torch.export.load(path).module()
    pairs = zip(COUNTS, logits, strict=True)
    return row | {"pt2_error": max(_difference(module(images[:count]), expected) for count, expected in pairs)}


@torch.no_grad()
def onnx_exported(network: nn.Module, images: Tensor, logits: Sequence[Tensor], path: Path) -> Row:
    """Write a network as ONNX; return the seconds and how far onnxruntime's logits differ."""
    import onnxruntime

    began = time.process_time()
    program = onnx_program(_program(network, images), images, inputs=["images"], outputs=["logits"])
    program.save(path)
    row: Row = {"onnx_seconds": time.process_time() - began}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    differences = []
    for count, expected in zip(COUNTS, logits, strict=True):
        (found,) = session.run(None, {given.name: images[:count].numpy()})
        differences.append(_difference(torch.from_numpy(found), expected))
    return row | {"onnx_error": max(differences), "onnx_operations": _operations(program)}


def _operations(program: Any) -> int:
    return len(program.model.graph)


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporters, which warn of their own future and log what they do."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
