"""The seeds of an arm as one network: CPU seconds a seed beside one training after the other, and what becomes of them.

Three forms of the same steps, on the quickstart's convnet, plain or with Blockout:

- ``alone``: a network after the other, by the project's own step. Two processes with a thread each take as many CPU
  seconds, so that this is today's study.
- ``vmap``: `torch.func.vmap` of the loss over stacked parameters.
- ``grouped``: one convolution in as many groups as seeds, one batched product for linear layers, one batch
  normalization over the channels of all seeds; draws, masks and penalties of Blockout by vmap.

Every seed keeps its initial weights, its order of images, its batches and its draws. Forms take turns, an epoch each,
so that all meet the same machine; printed are CPU seconds, medians over the epochs, and the medians of their ratios.

Run: ``python benchmarks/stacked_seeds.py [--method blockout] [--seeds 5] [--epochs 32] [--compiled]``. With
``--compiled`` a fourth form is ``torch.compile`` of the loss of one network, its compile time printed beside it.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import Experiment, build
from nas_blockout.methods import blockout, method_from_json
from nas_blockout.methods.masking import common_clusters
from nas_blockout.randomness.draws import DrawCounter, DrawsBefore
from nas_blockout.training import TrainingSettings
from nas_blockout.training.optimizers import make_optimizer, set_learning_rate
from nas_blockout.training.step import Step
from nas_blockout.training_protocol import TrainableModel, trainable

EPOCH_STRIDE = 1_000_003  # between the seeds of the orders of two epochs, as in `nas_blockout.training`
METHODS: Mapping[str, Mapping[str, Any]] = {
    "none": {"name": "none"},
    "blockout": {"name": "blockout", "polarization": 1.0},
}
Masked = Mapping[str, Tensor]


class Alone:
    """One network after the other."""

    def __init__(self, models: Sequence[TrainableModel], training: TrainingSettings, *, compiled: bool = False) -> None:
        self.models = [copy.deepcopy(model) for model in models]
        self.steps = [Step(model, make_optimizer(model, training), training) for model in self.models]
        self.generators = [torch.Generator().manual_seed(seed) for seed in range(len(models))]
        if compiled:
            for step in self.steps:
                step.loss = torch.compile(step.loss, dynamic=False)

    def train(self, images: Tensor, labels: Tensor, done_epochs: float) -> None:
        """Take one step of every network; images ``(seeds, batch, ...)``."""
        for step, x, y, generator in zip(self.steps, images, labels, self.generators, strict=True):
            step.model.train()
            step(x, y, generator, done_epochs=done_epochs)

    def networks(self) -> list[TrainableModel]:
        """Return the trained networks."""
        return self.models


class Loss(nn.Module):
    """The loss of a model as a module, for `functional_call`; its own names of parameters."""

    def __init__(self, model: TrainableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[TrainableModel], Any]) -> Any:
        return call(self.model)


class Stacked:
    """All networks as one, by vmap."""

    def __init__(self, models: Sequence[TrainableModel], training: TrainingSettings) -> None:
        self.templates = [copy.deepcopy(model).train() for model in models]
        self.loss = Loss(copy.deepcopy(models[0]).train())
        network: Any = getattr(self.loss.model, "network", None)
        network.get_parameter = lambda name: attrgetter(name)(
            network
        )  # within `functional_call` they are plain tensors
        parameters, buffers = stack_module_state([Loss(model) for model in self.templates])
        self.parameters = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
        self.buffers = {name: value.clone() for name, value in buffers.items()}
        self.generators = [torch.Generator().manual_seed(seed) for seed in range(len(models))]
        self.training = training
        self.optimizer = self._optimizer(make_optimizer(self.loss.model, training))
        self.counter: DrawCounter | None = None

    def _optimizer(self, alone: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer of one network with the parameters of all of them in its place."""
        names = {id(value): name for name, value in self.loss.named_parameters()}
        for group in alone.param_groups:
            group["params"] = [self.parameters[names[id(value)]] for value in group["params"]]
        return alone

    def _draws(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the uniform numbers of a step, shape ``(seeds, numbers)``: those that each would draw alone."""
        if self.counter is None:
            self.counter = DrawCounter()
            copy.deepcopy(self.templates[0]).loss(x[0], y[0], self.counter)
        return torch.stack([self.counter.drawn(generator, x.device)[1] for generator in self.generators])

    def losses(self, x: Tensor, y: Tensor, uniforms: Tensor) -> Tensor:
        """Return the loss of every network, shape ``(seeds,)``."""

        def one(parameters: Any, buffers: Any, images: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
            draws = DrawsBefore(numbers[:0].to(torch.int32), numbers)
            result: Tensor = functional_call(
                self.loss, (parameters, buffers), (lambda model: model.loss(images, labels, draws),)
            )
            return result

        result: Tensor = vmap(one)(self.parameters, self.buffers, x, y, uniforms)
        return result

    def train(self, images: Tensor, labels: Tensor, done_epochs: float) -> None:
        """Take one step of all networks; images ``(seeds, batch, ...)``."""
        set_learning_rate(self.optimizer, self.training, done_epochs)
        losses = self.losses(images, labels, self._draws(images, labels))
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()

    def networks(self) -> list[TrainableModel]:
        """Return the trained networks."""
        for number, model in enumerate(self.templates):
            state = {name[6:]: value[number] for name, value in (self.parameters | self.buffers).items()}
            model.load_state_dict(state)
        return self.templates


class Grouped(Stacked):
    """All networks as one, by convolutions in groups and batched products."""

    def losses(self, x: Tensor, y: Tensor, uniforms: Tensor) -> Tensor:
        """Return the loss of every network, shape ``(seeds,)``."""
        masked, penalties = self._masked(uniforms)
        logits = self._logits(x, masked)
        errors = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
        return errors + penalties

    def _masked(self, uniforms: Tensor) -> tuple[Masked, Tensor]:
        model = self.loss.model
        if not isinstance(model, blockout.Blockout):
            return {}, uniforms.new_zeros(len(uniforms))

        def one(parameters: Any, numbers: Tensor) -> tuple[Masked, Tensor]:
            def call(model: Any) -> tuple[Masked, Tensor]:
                drawn = model.draw(DrawsBefore(numbers[:0].to(torch.int32), numbers))
                return model.masked_weights(drawn), model.penalty()

            result: tuple[Masked, Tensor] = functional_call(self.loss, parameters, (call,))
            return result

        return vmap(one)(self.parameters, uniforms)  # type: ignore[no-any-return]  # of vmap

    def _logits(self, x: Tensor, masked: Masked) -> Tensor:
        seeds, batch = x.shape[:2]

        def value(name: str) -> Tensor:
            found: Tensor = masked[name] if name in masked else self.parameters[f"model.network.{name}"]
            return found

        x = x.transpose(0, 1).flatten(1, 2)
        network: Any = self.loss.model.network
        for name, stage in network.stages.items():
            weight = value(f"stages.{name}.operations.0.weight")
            if stage.stage.kind == "convolution":
                x = F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=seeds)
            else:
                bias = self.parameters.get(f"model.network.stages.{name}.operations.0.bias")
                rows = x.view(batch, seeds, -1).transpose(0, 1)
                columns = weight.transpose(1, 2)
                x = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)
                x = x.transpose(0, 1).reshape(batch, -1)
            if stage.normalize is not None:
                x = F.relu(self._normalized(x, f"model.network.stages.{name}.normalize."), inplace=True)
            if stage.stage.kind == "convolution":
                x = x.mean((2, 3)) if stage.stage.pool == 0 else F.max_pool2d(x, stage.stage.pool)
        return x.view(batch, seeds, -1).transpose(0, 1)

    def _normalized(self, x: Tensor, name: str) -> Tensor:
        mean, variance = (self.buffers[name + each].view(-1) for each in ("running_mean", "running_var"))
        gain, shift = (self.parameters[name + each].view(-1) for each in ("weight", "bias"))
        return F.batch_norm(x, mean, variance, gain, shift, training=True)


def plain_masked_weight(weight: Tensor, c_out: Tensor, c_in: Tensor, *, groups: int = 1) -> Tensor:
    """Return `masked_weight` without the project's own backward pass, of which vmap has no rule."""
    mask = common_clusters(c_out / c_out.shape[1], c_in, groups=groups)
    return weight * mask[(...,) + (None,) * (weight.dim() - 2)]


def epoch_of(form: Any, splits: Splits, training: TrainingSettings, epoch: int, seeds: int) -> float:
    """Train all networks of a form for one epoch; return the CPU seconds a network."""
    orders = [torch.Generator().manual_seed(seed + EPOCH_STRIDE * (epoch + 1)) for seed in range(seeds)]
    loader = Loader(splits.train, training.batch_size)
    steps = -(-len(splits.train) // training.batch_size)
    began = time.process_time()
    for step, batches in enumerate(zip(*(loader.batches(order) for order in orders), strict=True)):
        images, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
        form.train(images, labels, epoch + step / steps)
    return (time.process_time() - began) / seeds


@torch.no_grad()
def differences(ours: TrainableModel, alone: TrainableModel, splits: Splits) -> tuple[float, int]:
    """Return the largest difference of a logit in eval mode, and how many validation images get another class."""
    x = torch.cat([images for images, _ in Loader(splits.validation, 512).batches()])
    logits, expected = ours.eval()(x), alone.eval()(x)
    return float((logits - expected).abs().max()), int((logits.argmax(1) != expected.argmax(1)).sum())


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--compiled", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in all forms, epoch by epoch in turn, and print the table."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    data = DataSettings("digits", train_samples=150)
    training = TrainingSettings(epochs=options.epochs, batch_size=16, learning_rate=0.002)
    splits, method = load(data), method_from_json(METHODS[options.method])
    backbone = ConvNetSettings((32, 64), (128,))
    models = [
        trainable(build(Experiment(data, backbone, method, training, seed=seed), splits))
        for seed in range(options.seeds)
    ]
    forms: dict[str, Any] = {"alone": Alone(models, training)}
    if options.compiled:
        forms["compiled"] = Alone(models, training, compiled=True)
    forms |= {"vmap": Stacked(models, training), "grouped": Grouped(models, training)}
    own = blockout.masked_weight, blockout.lazily_masked
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    after_one: dict[str, float] = {}
    for epoch in range(options.epochs):
        for name, form in forms.items():
            plain = name in ("vmap", "grouped")
            blockout.masked_weight, blockout.lazily_masked = (plain_masked_weight,) * 2 if plain else own
            for model in getattr(form, "models", [form.loss.model] if plain else []):
                model.prepare_epoch(epoch, options.epochs)
            seconds[name].append(epoch_of(form, splits, training, epoch, options.seeds))
        blockout.masked_weight, blockout.lazily_masked = own
        if epoch == 0:
            after_one = {name: _worst(form, forms["alone"], splits)[0] for name, form in forms.items()}
    print(f"{options.method}, {options.seeds} seeds, {options.epochs} epochs, torch {torch.__version__}\n")
    print("| form | CPU ms an epoch and seed | trainings a CPU second, in those of alone | largest difference of a")
    print("logit after one epoch | after all | other classes, of validation images |\n|---|---|---|---|---|---|")
    for name, form in forms.items():
        ratios = [a / b for a, b in zip(seconds["alone"][1:], seconds[name][1:], strict=True)]
        largest, changed = _worst(form, forms["alone"], splits)
        print(
            f"| {name} | {1000 * statistics.median(seconds[name][1:]):.1f} | {statistics.median(ratios):.2f} "
            f"| {after_one[name]:.1e} | {largest:.1e} | {changed} of {options.seeds * len(splits.validation)} |"
        )
    if options.compiled:
        first = sum(seconds["compiled"][:1]) - statistics.median(seconds["compiled"][1:])
        print(f"\ncompile time: {first:.1f} CPU seconds a network, {options.epochs} epochs take the plain one ", end="")
        print(f"{options.epochs * statistics.median(seconds['alone'][1:]):.1f}")


def _worst(form: Any, alone: Any, splits: Splits) -> tuple[float, int]:
    found = [differences(ours, one, splits) for ours, one in zip(form.networks(), alone.networks(), strict=True)]
    return max(each[0] for each in found), sum(each[1] for each in found)


if __name__ == "__main__":
    main()
