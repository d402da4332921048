"""The parts of the device check, one function each; see ``device_check.py``."""

import io
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_measuring import (
    CLUSTERS,
    COMPILED,
    HALF,
    SEEDS,
    SHAPE,
    Call,
    Check,
    last_line,
    network,
    stepping,
    synthetic,
)
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.batch_statistics import estimate_statistics
from nas_blockout.data import DataSettings, Loader, Part, load
from nas_blockout.experiment import Experiment, Run, Snapshot, build
from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.methods import METHODS, method_from_json
from nas_blockout.methods.masking import lazily_masked
from nas_blockout.methods.paths.block_routes import ROUTES
from nas_blockout.methods.random_masks import draw_memberships
from nas_blockout.training import Loaders, TrainingSettings, evaluate, fit


def machine(check: Check) -> None:
    name = torch.cuda.get_device_name() if check.device == "cuda" else "none"
    told: dict[str, Any] = {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "GPU": name,
        "cores": os.cpu_count(),
    }
    a, size = torch.randn(2**20 if check.quick else 2**29, device=check.device), 256 if check.quick else 8192
    b = torch.empty_like(a)
    told["copy, TB/s"] = 8e-12 * a.numel() / statistics.median(check.seconds(lambda: b.copy_(a)) for _ in range(9))
    for name, kind in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        c = torch.randn(size, size, device=check.device, dtype=kind)
        seconds = statistics.median([check.seconds(partial(torch.mm, c, c)) for _ in range(9)])
        told[f"{name}, TFLOP/s"] = 2e-12 * size**3 / seconds
    check.row("1 machine", **told)


def tiny(name: str, epochs: int) -> tuple[Experiment, Any]:
    backbone = ResNetSettings(8) if name == "blockdrop" else ConvNetSettings()
    data = DataSettings("digits", train_samples=300)
    return Experiment(data, backbone, method_from_json({"name": name}), TrainingSettings(epochs)), load(data)


def correctness(check: Check, name: str) -> None:
    experiment, splits = tiny(name, 2)
    wild, ends, cells = replace(experiment.training, learning_rate=1e30), dict[str, Any](), {"method": name}
    for title in ("cpu", "device", "again", "resumed", "diverged", "healthy, after it"):
        try:
            each = replace(experiment, training=wild) if title == "diverged" else experiment
            run = Run(each, splits, device="cpu" if title == "cpu" else check.device)
            if title == "resumed":
                next(run)
                torch.save(run.snapshot().to_state(), held := io.BytesIO())
                state = Snapshot.from_state(torch.load(io.BytesIO(held.getvalue()), weights_only=True))
                run = Run(experiment, splits, device=check.device, start=state)
            list(run)
            cells[title] = run.failure or f"accuracy {run.records[-1].validation_accuracy:.3f}"
            ends[title] = run.outcome.model.state_dict() if run.outcome else {}
            if title in ("again", "resumed"):
                apart = max(
                    float((v.double() - ends["device"][k].double()).abs().max()) for k, v in ends[title].items()
                )
                cells[title] += f", weights within {apart:.2g}"
        except Exception as error:  # noqa: BLE001  # whatever it is, the table tells
            cells[title] = f"raised {last_line(error)}"
        if title in ("resumed", "healthy, after it"):
            check.row("2 two epochs on digits" + "; diverged: learning rate 1e30" * ("healthy" in title), **cells)
            cells = {"method": name}


def host_syncs(check: Check) -> None:
    def watched(call: Call) -> str:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn") if check.device == "cuda" else None
            call()
            torch.cuda.set_sync_debug_mode("default") if check.device == "cuda" else None
        lines = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchronizing" in str(w.message)]
        return ", ".join(f"{line} x{lines.count(line)}" for line in dict.fromkeys(lines))

    for name in METHODS:
        with check.attempt("3", name):
            experiment, splits = tiny(name, 4)  # of blockdrop two epochs of the network, one of the policy, one of both
            model, train = build(experiment, splits), splits.train.to(check.device)
            loaders = Loaders(Loader(train, 64), Loader(splits.validation, 256))
            records = fit(model, loaders, experiment.training, seed=0, device=check.device)
            next(records), next(records)
            epochs, (step, _) = (
                watched(lambda records=records: list(records)),
                stepping(check, model.train(), train, 64),
            )
            step()
            told = {"a step": watched(step), "two epochs of fit": epochs}
            check.row("3 lines that wait for the device (data is there); none are seen on a cpu", method=name, **told)


def layers(check: Check) -> None:
    generator = torch.Generator(check.device).manual_seed(0)

    def library(x: Tensor, w: Tensor, b: Tensor, *logits: Tensor) -> Tensor:
        c_out, c_in = (draw_memberships(torch.sigmoid(each), generator) for each in logits)
        return F.linear(x, lazily_masked(w, c_out, c_in), b)

    def plain(x: Tensor, w: Tensor, b: Tensor, *logits: Tensor, spread: bool = False) -> Tensor:
        p = [torch.sigmoid(each) for each in logits]
        hard = [(torch.rand_like(each) < each).to(each.dtype) for each in p]
        c, d = (h + h * (each - each.detach()) for h, each in zip(hard, p, strict=True))  # gradients as in eq. 9
        mask = sum(c[:, k, None] * d[None, :, k] for k in range(CLUSTERS)) if spread else c @ d.T
        return F.linear(x, w * mask / CLUSTERS, b)

    forms: dict[str, Callable[..., Tensor]] = {"Linear": lambda x, w, b, *_: F.linear(x, w, b)}
    forms |= {"Dropout": lambda x, w, b, *_: F.dropout(F.linear(x, w, b)), "library": library, "plain": plain}
    forms |= {"plain compiled": torch.compile(plain, dynamic=True)}
    forms |= {"mask as a sum, compiled": torch.compile(partial(plain, spread=True), dynamic=True)}

    def make(form: Callable[..., Tensor], sets: Iterator[list[Tensor]], half: bool) -> Call:
        def run() -> None:
            *given, above = next(sets)
            with torch.autocast(check.device, torch.bfloat16, enabled=half):
                y = form(*given)
            torch.autograd.grad(y, given, above.detach().to(y.dtype), allow_unused=True)

        return run

    for name, batch in product(("fp32", "tf32", "bf16"), (16,) if check.quick else (128, 1024)):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        for d in (64,) if check.quick else (512, 1024) if check.warm else (512, 1024, 2048, 4096, 8192):
            shapes = ((batch, d), (d, d), (d,), (d, CLUSTERS), (d, CLUSTERS), (batch, d))
            count = 2 if check.quick else max(1, min(32, 2**27 // (8 * d * (d + 2 * batch))))
            sets = [[torch.randn(s, device=check.device).requires_grad_() for s in shapes] for _ in range(count)]
            made = {title: partial(make, form, cycle(sets), name == "bf16") for title, form in forms.items()}
            check.compare("4 step of a layer, over Linear", {"precision": name, "batch": batch, "d": d}, made)


def whole_steps(check: Check, *only: str) -> None:
    blockout: dict[str, Any] = {"name": "blockout", "preset": "paper", "clusters": 2 if check.quick else CLUSTERS}
    methods = {"none": {}, "head": blockout, "all": blockout | {"masked": "all"}}
    methods |= {f"{name}, penalty": methods[name] | {"cost_penalty": 1.0} for name in ("head", "all")}
    nets: dict[str, Any] = {"resnet 18": ResNetSettings(18), "inception": InceptionSettings(hidden=(4096, 4096))}

    def make(net: str, form: str, splits: Any, batch: int, method: dict[str, Any]) -> Call:
        return stepping(check, network(check, nets[net], splits, **method), splits.train, batch, form)[0]

    for form, batch, net in product(("fp32", HALF, COMPILED), (4,) if check.quick else (512, 128), nets):
        if (form == COMPILED and batch == 128) or (only and only[:1] != (net,)) or (form != COMPILED and check.warm):
            continue
        torch.compiler.reset()
        names = [n for n in only[1:] or methods if not (net == "inception" and "all" in n)]
        names = [n for n in names if form != COMPILED or "penalty" not in n]
        splits = synthetic(SHAPE, 2 * batch, check.device)
        made = {name: partial(make, net, form, splits, batch, methods[name]) for name in names}
        check.compare(
            "5 whole step, over no method; fp32 convolves by tf32", {"net": net, "form": form, "batch": batch}, made
        )


def droppers(check: Check) -> None:
    updates: list[float] = []

    def update(model: Any) -> None:
        for layer in model.maps.values():
            layer.prepare_epoch(0, 1)
        with torch.no_grad():
            model.eval()(torch.randn(256, *SHAPE, device=check.device))

    def make(name: str, splits: Any, batch: int) -> Call:
        model = network(check, ResNetSettings(18), splits, name=name.split()[-1])
        for layer in model.maps.values() if "torchvision" in name else ():
            layer.forward = lambda x, _, of=layer: torchvision.ops.drop_block2d(x, 0.1, 3, training=of.training)
        if name == "dropcluster":
            updates[:] = [check.seconds(lambda: update(model)) for _ in range(2)]
        return stepping(check, model.train(), splits.train, batch)[0]

    for batch in (8,) if check.quick else (128, 512):
        names = ("none", "torchvision's dropblock", "dropblock", "dropcluster")
        made = {name: partial(make, name, synthetic(SHAPE, 2 * batch, check.device), batch) for name in names}
        found = check.compare("6 step of resnet 18, over no method", {"batch": batch}, made)
        epoch = 50_000 / batch * found["none"] * found["dropcluster"]
        cells = {"first s": updates[0], "again s": updates[1], "epoch of 50,000 s": epoch, "share": updates[1] / epoch}
        check.row("6 update of clusters by 256 images", batch=batch, **cells)


@torch.inference_mode()
def skipping(check: Check) -> None:
    splits, backbone = synthetic(SHAPE, 1024, check.device), ResNetSettings(8 if check.quick else 110)
    model = network(
        replace(check, quick=False), backbone, splits, name="blockdrop", preset="paper", policy_pool=2
    ).eval()
    flops = model.flops(splits.train.images[:1])

    def make(name: str, x: Tensor, keep: Tensor) -> Call:
        if name == "full":
            return lambda: model.network(x)
        return lambda: (model.policy(x), ROUTES[name](model.network, x, keep, None))  # type: ignore[index]

    for batch, paths in product((4,) if check.quick else (1, 64, 256, 1024), (10, 1024)):
        index = torch.arange(batch, device=check.device) % paths
        keep = (torch.rand(1024, len(flops.blocks), device=check.device) < 0.5).index_select(0, index)
        names = ["full", *(name for name in ROUTES if name != "grouped" or min(batch, paths) <= 64)]
        made = {name: partial(make, name, splits.train.images[:batch], keep) for name in names}
        left = float(flops.of(keep).mean()) / flops.full
        cells = {"batch": batch, "paths": min(batch, paths), "FLOPs left": left}
        check.compare("7 BlockDrop, half of the blocks (saved of FLOPs)", cells, made, dict.fromkeys(names, left))


def architecture(plan: Any, branches: int, target: float) -> tuple[float, Architecture]:
    """Return disjoint branches after a trunk, near to a share of the MACs and thinned as little as can be."""
    labels, found = [tuple(range(branch, 10, branches)) for branch in range(branches)], []
    last = Layer("classes", tuple(Group((branch,), len(held), held) for branch, held in enumerate(labels)))
    for trunk, thin in product(range(len(plan) - 1), range(16, 65)):
        widths = [(stage.name, round(stage.width * thin / 64)) for stage in plan[:-1]]
        dense = [Layer(name, (Group(tuple(range(branches)), width),)) for name, width in widths[:trunk]]
        apart = [Layer(n, tuple(Group((b,), w // branches) for b in range(branches))) for n, w in widths[trunk:]]
        made = Architecture(branches, (*dense, *apart, last))
        share = macs_of(made, plan, 3) / macs_of(dense_of(plan), plan, 3)
        far = max(0.02, abs(share - target))
        found.append((far, -thin, share, made))
    return min(found, key=lambda each: each[:2])[2:]


@torch.inference_mode()
def branched(check: Check) -> None:
    plan = stages(ConvNetSettings(*(((16, 16), (16,)) if check.quick else ((128, 256, 512), (1024,)))), SHAPE, 10)
    kinds = product((4,) if check.quick else (4, 8), (0.4, 0.25))
    found = {"dense": (1.0, dense_of(plan))} | {f"{b} branches, {t}": architecture(plan, b, t) for b, t in kinds}

    def make(whole: Architecture, form: str, batch: int) -> Call:
        x = torch.randn(batch, *SHAPE, device=check.device)
        model: Any = BranchedNetwork(plan, whole, channels=3).eval().for_inference(batch=batch).to(check.device)
        run = torch.compile(model) if form == "compiled" else model
        if form != "CUDA graph":
            return partial(run, x)
        run(x), run(x), torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(x)
        return graph.replay

    for form, batch in product(("compiled", "eager", "CUDA graph"), (2,) if check.quick else (1, 64, 256, 1024)):
        if form == "compiled" or not check.warm:
            torch.compiler.reset()
            made = {name: partial(make, whole, form, batch) for name, (_, whole) in found.items()}
            left = {name: share for name, (share, _) in found.items()}
            check.compare("7 branched, over dense (saved of MACs)", {"form": form, "batch": batch}, made, left)


def loops(check: Check) -> None:
    count, forms = 128 if check.quick else 51_200, ("fp32", HALF, COMPILED)
    splits = {device: synthetic(SHAPE, count, device) for device in ("cpu", check.device)}
    nets: dict[str, Any] = {"convnet": ConvNetSettings(), "resnet 18": ResNetSettings(18)}
    for batch, net, loop in product(
        (32,) if check.quick else (512, 128), nets, ("fit, cpu", f"fit, {check.device}", *forms)
    ):
        if check.warm and (batch == 128 or loop != COMPILED):
            continue
        with check.attempt("8", net, batch, loop):
            train, settings = splits["cpu" if loop == "fit, cpu" else check.device].train, TrainingSettings(2, batch)
            model, few = network(check, nets[net], splits["cpu"]), Part(train.images[:2], train.labels[:2])
            records = fit(model, Loaders(Loader(train, batch), Loader(few, 2)), settings, seed=0, device=check.device)
            step, _ = stepping(check, model, train, batch, loop)
            bare = lambda step=step, n=count // batch: float(sum(step() for _ in range(n)))  # noqa: E731
            call = step if check.warm else partial(next, records) if "fit" in loop else bare
            rate = [count / check.seconds(call) for _ in range(2)][1]  # type: ignore[arg-type]
            check.row(
                "8 training loop, data where it says or on the device", net=net, batch=batch, loop=loop, rate=rate
            )


def by_fit(check: Check, shape: Any, count: int, seeds: list[int], barrier: Any = None) -> None:
    """Train seeds of the small convnet, four epochs each; with a barrier after an epoch to warm up, and together."""
    splits = synthetic(shape, count, check.device)
    loaders = Loaders(Loader(splits.train, 64), Loader(splits.validation, 256))
    for seed, epochs in [(0, 1)] * (barrier is not None) + [(seed, 4) for seed in seeds]:
        model = network(check, ConvNetSettings(), splits, seed)
        list(fit(model, loaders, TrainingSettings(epochs), seed=seed, device=check.device))
        barrier.wait(20) if barrier else None


def stacked(check: Check, shape: Any, count: int, compiled: bool) -> Call:
    """Return an epoch of all seeds as one network, with its validation: vmap over stacked parameters."""
    splits = synthetic(shape, count, check.device)
    models = [network(check, ConvNetSettings(), splits, seed) for seed in range(SEEDS)]
    parameters, buffers = torch.func.stack_module_state(models)
    base = network(check, ConvNetSettings(), splits).to("meta")
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=2e-3, fused=True)
    each = torch.vmap(lambda p, b, x: torch.func.functional_call(base, (p, b), (x,)))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return SEEDS * F.cross_entropy(each(parameters, buffers, x).flatten(0, 1), y.flatten())

    find = torch.compile(loss) if compiled else loss

    def epoch() -> None:
        base.train()
        for index in torch.rand(SEEDS, count, device=check.device).argsort(1).split(64, 1):
            optimizer.zero_grad(set_to_none=True)
            find(splits.train.images[index], splits.train.labels[index]).backward()
            optimizer.step()
        base.eval()
        with torch.no_grad():
            each(parameters, buffers, splits.validation.images.expand(SEEDS, -1, -1, -1, -1)).argmax(2).tolist()

    return epoch


def many(check: Check) -> None:
    sizes: dict[str, Any] = {"896 of 8x8": ((1, 8, 8), 896), "5,120 of 32x32": (SHAPE, 128 if check.quick else 5120)}
    for how, images in product(("5 processes", "in turn", "vmapped", "vmapped, compiled"), sizes):
        with check.attempt("9", how, images):
            if how == "5 processes":  # they start before this one touches the GPU
                barrier = multiprocessing.Barrier(SEEDS + 1)
                for seed in range(SEEDS):
                    multiprocessing.Process(target=by_fit, args=(check, *sizes[images], [seed], barrier)).start()
                barrier.wait(20)
                began = time.perf_counter()
                barrier.wait(20)
                rate = 60 * 4 * SEEDS / (time.perf_counter() - began)
            else:
                vmapped = stacked(check, *sizes[images], "compiled" in how) if "vmapped" in how else None
                call, epochs = vmapped or partial(by_fit, check, *sizes[images], [1]), SEEDS if vmapped else 4
                rate = [60 * epochs / check.seconds(call) for _ in range(2)][1]
            check.row(
                "9 five seeds of the convnet, validated", images=images, how=how, **{"seed-epochs a minute": rate}
            )


def paper(check: Check) -> None:
    with np.load(check.data) as file:  # type: ignore[arg-type]
        arrays = [torch.from_numpy(file[f"{n}_{s}"]).to(check.device) for s in ("train", "val") for n in "xy"]
    images = [(x[:, None] if x.dim() == 3 else x).float() for x in arrays[::2]]
    mean, scale = images[0].mean((0, 2, 3), keepdim=True), images[0].std((0, 2, 3), keepdim=True)
    train, held = (Part((x - mean) / scale, y.long()) for x, y in zip(images, arrays[1::2], strict=True))
    blockout = {"name": "blockout", "preset": "paper", "clusters": 2 if check.quick else CLUSTERS}
    arms: dict[str, Any] = {"none": {}, "FC 512 x 2": {}, "FC + dropout .3": {"name": "dropout", "rate": 0.3}}
    arms |= {mode: blockout | {"mode": mode} for mode in ("soft-learned", "hard-fixed", "hard-learned")}
    splits, epochs, steps = (
        synthetic(train.images.shape[1:], 99, "cpu", int(train.labels.max()) + 1),
        0,
        len(train) // 256,
    )
    for seed, arm in product(range(99), arms):
        with check.attempt("10", arm, seed):
            backbone = InceptionSettings(hidden=() if arm == "none" else (512, 512))
            model = network(check, backbone, splits, seed, **arms[arm])
            step, optimizer = stepping(check, model, train, 256, HALF)
            step(), step()
            epochs = epochs or max(1, int(0.7 * check.left() / (2 * len(arms) * steps * check.seconds(step, 5))))
            for number in range(epochs * steps):
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * (1 + math.cos(math.pi * number / epochs / steps))
                step(), check.left()
            plain, trained = network(check, backbone, splits), model.fold() if "fold" in dir(model) else model
            plain.load_state_dict(trained.state_dict())
            before = evaluate(plain, Loader(held, 512), device=check.device).accuracy
            sample = Loader(train, 256).sample(4096, torch.Generator().manual_seed(seed))
            estimate_statistics(plain, (batch.to(check.device) for batch in sample))
            told = {
                "as trained": before,
                "statistics anew": evaluate(plain, Loader(held, 512), device=check.device).accuracy,
            }
            check.row("10 Inception compact, accuracy", arm=arm, seed=seed, epochs=epochs, **told)


Task = tuple[int, Callable[..., None], float, tuple[str, ...]]  # part, work, usual seconds, what else it is told
FIRST: list[Task] = [*((2, correctness, 60, (name,)) for name in METHODS), (3, host_syncs, 60, ())]
TIMED: list[Task] = [(1, machine, 8, ()), (4, layers, 45, ()), (5, whole_steps, 60, ()), (6, droppers, 15, ())]
