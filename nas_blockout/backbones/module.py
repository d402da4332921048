"""Any network as a backbone: made by a factory of yours, with pretrained weights and a layer for your classes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_blockout.backbones import factory as factories
from nas_blockout.backbones import pretrained
from nas_blockout.backbones.branched import Sites
from nas_blockout.networks import Network
from nas_blockout.plugins import named_code
from nas_blockout.randomness.draws import Randomness
from nas_blockout.serialization import count_of, near
from nas_blockout.settings_fields import Conflict, Pattern, PlainMapping, check

Shape = tuple[int, int, int]

NO_ARGUMENTS = PlainMapping()
_BATCH = 2  # batch normalization cannot train on one image
_CLASSES_LAYER = "backbone.classes_layer"
_OF_NETWORK = ("backbone.factory", "backbone.arguments", "data")


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """Settings of a network that a factory makes: any function or class that returns an `nn.Module` which gives logits.

    Args:
        factory: What makes the network: ``package.module:name``, which must be importable wherever the study runs, or
            ``path/to/file.py:name``, relative to the study file.
        arguments: Keyword arguments of the factory; ``num_classes`` is added if the factory has a parameter of this
            name.
        weights: File of pretrained weights, relative to the study file, or in a bundled study to the current folder:
            safetensors, such as the ``weights.safetensors`` of an exported model, or what `torch.save` wrote, of which
            only tensors are read; None for fresh weights.
        classes_layer: Name of the linear layer that gives the logits, such as ``fc``; None to find it, which works if
            there is only one candidate.
    """

    factory: Annotated[str, Pattern(named_code.FORM, named_code.FORM_SHOWN, factories.FORM_EXAMPLE)]
    arguments: PlainMapping = NO_ARGUMENTS
    weights: Annotated[str, Pattern(pretrained.FORM, pretrained.FORM_SHOWN, pretrained.FORM_EXAMPLE)] | None = None
    classes_layer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", PlainMapping(self.arguments))  # which may be given as a dictionary
        check(self)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that these settings name: of the factory, if it is in one, and of the weights, if there are any."""
        weights = Path(self.weights).expanduser() if self.weights is not None else None
        return tuple(path for path in (named_code.file_of(self.factory), weights) if path is not None)


class ModuleNetwork(Network):
    """The network of a factory, called like all others; its parameters have their names behind ``module.``.

    Args:
        module: Takes images, shape ``(batch, channels, height, width)``, and gives logits.
        classes_layer: Name of the linear layer that gives the logits; None if it is not known.
        notes: What was changed in the network that the factory made, one sentence each.
        sites: Where a method enters: before the classes layer, or in place of it.
    """

    def __init__(
        self, module: nn.Module, *, classes_layer: str | None = None, notes: tuple[str, ...] = (), sites: Sites
    ) -> None:
        super().__init__()
        self.module = module
        self.classes_layer = classes_layer
        self.notes = notes
        self._generator: Randomness | None = None
        if sites.nodes is None and sites.weights is None:
            return
        assert classes_layer is not None, "`build` has found it"
        linear = module.get_submodule(classes_layer)
        assert isinstance(linear, nn.Linear)
        if sites.weights is not None:
            dropping = sites.weights(linear)
            self.module = _replaced(module, classes_layer, dropping)
            dropping.register_forward_pre_hook(self._draw, with_kwargs=True)
        if sites.nodes is not None:
            self.before = sites.nodes()
            linear.register_forward_pre_hook(self._enter)

    def _draw(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Hand the generator to a layer that the module calls without one."""
        return args, {**kwargs, "generator": self._generator}

    def _enter(self, layer: nn.Module, args: tuple[Tensor]) -> Tensor:
        entered: Tensor = self.before(args[0], self._generator)
        return entered

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, channels, height, width)``.

        Args:
            x: Images.
            generator: Of the draws of a method's layers. Layers of the module itself draw from PyTorch's global one.
        """
        self._generator = generator
        try:
            logits: Tensor = self.module(x)
        finally:
            self._generator = None  # it belongs to the caller, and cannot be copied with the network
        return logits


class _Trial(NamedTuple):
    """What a forward pass of images of zeros shows: the number of logits, and the linear layers that may give them."""

    logits: int
    candidates: tuple[str, ...]


def outline(settings: ModuleSettings, shape: Shape, classes: int, sites: Sites) -> ModuleNetwork:
    """Return the network of a factory on the device ``meta``, where weights have a shape and take no memory.

    A factory that reads values which it has computed cannot work there, and pretrained weights are compared with the
    network: these networks are built with their values first, and a note says why.

    Args:
        settings: The factory and what it is given.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        sites: Where a method enters.

    Raises:
        Conflict: As in `build`.
    """
    reason = None
    if settings.weights is None:
        factories.note_outlined(settings.factory)
        try:
            with torch.device("meta"):
                return build(settings, shape, classes, sites).to("meta")
        except Conflict as conflict:  # the same, if the factory is at fault, as where it has values
            reason = str(conflict).partition(": ")[2]
    with torch.device("cpu"):
        network = build(settings, shape, classes, sites)
    if reason is not None:
        network.notes += (f"the checks of the study allocate the weights of {settings.factory}, since {reason}",)
    return network.to("meta")


def build(settings: ModuleSettings, shape: Shape, classes: int, sites: Sites) -> ModuleNetwork:
    """Return the network of a factory, with pretrained weights if there are any, and one logit a class.

    New weights are drawn from PyTorch's global generator, as by any factory.

    Args:
        settings: The factory and what it is given.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        sites: Where a method enters; only at the linear layer that gives the logits.

    Raises:
        Conflict: The factory or the weights are refused, or the network does not take these images or give one logit a
            class; the keys are those of an experiment as JSON, such as ``backbone.factory``.
    """
    network, given = _made(settings, shape, classes)
    return _fitted(network, given, settings, shape, classes, sites)


def fitted(network: nn.Module, settings: ModuleSettings, shape: Shape, classes: int, sites: Sites) -> ModuleNetwork:
    """Return a network as `build` does, once its factory has made it.

    Args:
        network: What was made.
        settings: What of, for weights, classes layer and errors.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        sites: Where a method enters.

    Raises:
        Conflict: As in `build`.
    """
    given = _tried(network, settings, shape, training=False)
    return _fitted(network, given, settings, shape, classes, sites)


def _fitted(
    network: nn.Module, given: _Trial, settings: ModuleSettings, shape: Shape, classes: int, sites: Sites
) -> ModuleNetwork:
    name, notes = _classes_layer(network, settings, given), []
    if settings.weights is not None:
        path = Path(settings.weights).expanduser()
        tensors = pretrained.read_weights(path)
        left = pretrained.load_pretrained(network, tensors, source=str(path), classes_layer=name)
        if left:
            notes.append(f"{path.name} is for {left} classes: the weights of its classes layer, {name}, are not used")
    if given.logits != classes:
        if name is None:
            raise _unnamed(network, settings, f"gives {given.logits} logits for {classes} classes", given.candidates)
        old = network.get_submodule(name)
        assert isinstance(old, nn.Linear)
        network = _replaced(network, name, _fresh(old, classes))
        notes.append(
            f"the classes layer {name or 'of the network'} gives {old.out_features} logits: it is replaced by a new "
            f"one for {classes} classes"
        )
    network.train()
    for training in (False, True):
        _require_classes(network, settings, _tried(network, settings, shape, training=training), classes, name)
    if name is None and (sites.nodes or sites.weights):
        raise _unnamed(network, settings, "has no linear layer that is known to give the logits", given.candidates)
    return ModuleNetwork(network, classes_layer=name, notes=tuple(notes), sites=sites)


def _made(settings: ModuleSettings, shape: Shape, classes: int) -> tuple[nn.Module, _Trial]:
    """Call the factory and try what it makes, once more if it may have kept values of a call on ``meta``."""
    while True:
        try:
            network = factories.call_factory(settings.factory, settings.arguments.to_json(), classes)
            return network, _tried(network, settings, shape, training=False)
        except Conflict:
            if torch.get_default_device().type == "meta" or not factories.forget_outlined(settings.factory):
                raise


def _fresh(old: nn.Linear, classes: int) -> nn.Linear:
    device, dtype = old.weight.device, old.weight.dtype
    return nn.Linear(old.in_features, classes, bias=old.bias is not None, device=device, dtype=dtype)


def _replaced(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put a layer in the place of another; return the module, or the layer if it is the whole module."""
    if not name:
        return layer
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)
    return module


def _classes_layer(network: nn.Module, settings: ModuleSettings, given: _Trial) -> str | None:
    """Return the name of the linear layer that gives the logits, as set or found; None if there is not one candidate.

    Raises:
        Conflict: The settings name no linear layer of the network.
    """
    name = settings.classes_layer
    if name is None:
        return given.candidates[0] if len(given.candidates) == 1 else None
    linear = _linear_layers(network)
    if name not in linear:
        modules = dict(network.named_modules())
        kind = f"a {type(modules[name]).__name__}" if name in modules else "no layer"
        raise Conflict(
            f"{_CLASSES_LAYER}: must name the linear layer that gives the logits, got {name!r}, which is {kind} of "
            f"{settings.factory}; {near(name, linear) if linear else 'it has no linear layer'}",
            _CLASSES_LAYER,
            *_OF_NETWORK,
        )
    return name


def _linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}


def _unnamed(network: nn.Module, settings: ModuleSettings, fact: str, candidates: tuple[str, ...]) -> Conflict:
    linear = candidates or tuple(_linear_layers(network))
    remedy = (
        f"set classes_layer to the linear layer that gives them, one of {', '.join(linear[-8:])}"
        if linear
        else "it has no linear layer that could be replaced, so make the factory give one logit a class"
    )
    return Conflict(f"{_CLASSES_LAYER}: {settings.factory} {fact}; {remedy}", _CLASSES_LAYER, *_OF_NETWORK)


def _require_classes(
    network: nn.Module, settings: ModuleSettings, given: _Trial, classes: int, name: str | None
) -> None:
    if given.logits != classes:
        replaced = f" though its layer {name} was replaced" if name is not None else ""
        raise _unnamed(
            network, settings, f"gives {given.logits} logits for {classes} classes{replaced}", given.candidates
        )


def _tried(network: nn.Module, settings: ModuleSettings, shape: Shape, *, training: bool) -> _Trial:
    """Run the network on images of zeros; neither its buffers nor its mode nor any generator change.

    Raises:
        Conflict: It fails, or what it returns are no logits.
    """
    if problem := factories.several_inputs(network):
        raise Conflict(f"backbone.factory: {problem}", "backbone.factory", "backbone.arguments")
    size = "x".join(map(str, shape))
    outputs: dict[str, list[Tensor]] = {}
    with _unchanged(network, training=training), _recorded(network, outputs), torch.no_grad():
        try:
            logits = network(torch.zeros(_BATCH, *shape))
        except Exception as error:
            hint = _channels_hint(network, shape[0])
            mode = " in training mode" if training else ""
            raise Conflict(
                f"backbone.factory: the network of {settings.factory} fails{mode} on images of {size} (channels x "
                f"height x width): {named_code.told(error)}{hint}",
                *_OF_NETWORK,
            ) from error
    if not isinstance(logits, Tensor):
        mode = "in training mode" if training else "in eval mode"
        raise Conflict(
            f"backbone.factory: the network of {settings.factory} must return logits {mode}, got a value of type "
            f"{type(logits).__name__}; if it has auxiliary outputs, turn them off, such as by arguments: "
            "{aux_logits: false}",
            *_OF_NETWORK,
        )
    if logits.dim() != 2 or len(logits) != _BATCH or not logits.is_floating_point():
        raise Conflict(
            f"backbone.factory: the network of {settings.factory} must return logits of shape (batch, classes), got "
            f"{tuple(logits.shape)} of type {str(logits.dtype).removeprefix('torch.')} for {_BATCH} images of {size}",
            *_OF_NETWORK,
        )
    storage = logits.untyped_storage()._cdata  # unlike a pointer to the data it is there without data, too
    candidates = tuple(
        name for name, values in outputs.items() if any(each.untyped_storage()._cdata == storage for each in values)
    )
    return _Trial(logits.shape[1], candidates)


def _channels_hint(network: nn.Module, channels: int) -> str:
    """Return the end of an error where the first convolution does not read the channels of the data."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == channels:
                return ""
            return (
                f"; the data has {count_of(channels, 'channel')} and the first convolution, {name}, reads "
                f"{module.in_channels}: let the factory make it for {channels}, or change the channels in its forward"
            )
    return ""


@contextmanager
def _unchanged(network: nn.Module, *, training: bool) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    buffers: Mapping[str, Tensor] = {name: value.clone() for name, value in network.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            network.train(training)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, value in network.named_buffers():
                if name in buffers:
                    value.copy_(buffers[name])


@contextmanager
def _recorded(network: nn.Module, outputs: dict[str, list[Tensor]]) -> Iterator[None]:
    """Keep what the linear layers return; kept, no memory of one output is used again for another."""

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(name, []).append(output)

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in _linear_layers(network).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
