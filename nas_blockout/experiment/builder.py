"""From an experiment to its network: with its method in place for training, and plain for what it ends in."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import backbone_of, scaled_to
from nas_blockout.backbones.branched import Sites
from nas_blockout.data import Splits
from nas_blockout.experiment.branchable import (
    Shape,
    build_branchable,
    dense_macs_of,
    from_scratch,
    narrowed,
    outline,
    with_new_weights,
)
from nas_blockout.experiment.config import Experiment, needs_graph
from nas_blockout.experiment.reachable_targets import chosen_conflicts, learned_conflicts, pruning_conflicts
from nas_blockout.graph.macs import count_macs
from nas_blockout.graph.network import GraphNetwork
from nas_blockout.methods import NoneSettings, method_of
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.memberships.initial import require_nodes
from nas_blockout.methods.paths.block_routing import fixed_path
from nas_blockout.methods.supernet.darts import Darts
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.methods.supernet.hierarchy_choices import HierarchyChoices
from nas_blockout.networks import Branchable, Network, masked_connections
from nas_blockout.settings_fields import Conflict, conflicts_in, refuse
from nas_blockout.structure.confusion import ConfusionSettings, most_branches
from nas_blockout.structure.pruning import PruningSettings, standardized_magnitudes
from nas_blockout.training import NORMS_AND_BIASES, unmatched

# Widths of a residual network are tried in steps of one 256th: in 64ths, channels of several stages are rounded up at
# once, and of 32 layers a cost between two steps is missed by up to 7% instead of 4%.
_WIDTHS = 256


# 40 GB of weights in single precision, and three times as much again for gradients and an optimizer's state.
MOST_PARAMETERS = 10**10


def build(experiment: Experiment, splits: Splits) -> nn.Module:
    """Return the network of an experiment before training, with initial weights decided by its seed.

    Args:
        experiment: What to build.
        splits: Give the shape of an image and the number of classes.

    Raises:
        ValueError: The network cannot be built for these images, or the derivation does not fit it.
    """
    return built_for_training(experiment, shape=splits.shape, classes=len(splits.class_names))


def outlined_for_training(experiment: Experiment, *, shape: Shape, classes: int) -> nn.Module:
    """Return what `build` returns, on the device ``meta``, where weights have a shape and no values.

    What a factory makes is built with its values first only if it cannot do without them.

    Args:
        experiment: What would be built.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        ValueError: As in `build`.
    """
    with torch.device("meta"):
        return built_for_training(experiment, shape=shape, classes=classes)


def built_for_training(experiment: Experiment, *, shape: Shape, classes: int) -> nn.Module:
    """Return what `build` returns, for data of which no more is known than this.

    Args:
        experiment: What to build.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        ValueError: As in `build`.
    """
    refuse(_derivation_conflicts(experiment, shape, classes))
    model = _built_for_training(experiment, shape, classes)
    refuse(unmatched(model, experiment.training.no_decay))
    return model


def _built_for_training(experiment: Experiment, shape: Shape, classes: int) -> nn.Module:
    """Return the network of an experiment with its method in place."""
    # PyTorch draws initial weights from its global generator: it is seeded here and put back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        network = built(experiment, shape, classes, _sites(experiment.method))
        refuse(pruning_conflicts(experiment, network))
        if isinstance(experiment.method, BlockoutSettings):
            method = experiment.method
            if torch.get_default_device().type == "meta":  # what depends on values decides no name and no shape
                method = replace(method, magnitude_spread=0.0, start_at="probabilities", rescale=False)
            known = standardized_magnitudes(network) if method.magnitude_spread else None
            masked = Blockout(network, network.connections, method, known)
            refuse(learned_conflicts(experiment, network, masked.masked_connections))
            return masked
        if isinstance(experiment.method, DartsSettings):
            assert isinstance(network, Branchable), "built through its graph"
            supernet = Darts(network, experiment.method, accumulation=experiment.training.accumulation)
            refuse(chosen_conflicts(experiment, network, supernet.choices))
            return supernet
        if isinstance(experiment.method, BlockDropSettings):
            return BlockDrop(network, _seeded(experiment), shape=shape)  # type: ignore[arg-type]
        return network


def notes_of(experiment: Experiment, *, shape: Shape, classes: int) -> tuple[str, ...]:
    """Return what should be known about how the network of an experiment is made, one sentence each.

    Args:
        experiment: What is built.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        ValueError: The network cannot be built for these images.
    """
    if not backbone_of(experiment.backbone).from_factory:  # all others are made as their settings say
        return ()
    return _outline(experiment.backbone, None, None, shape, classes).notes


def _seeded(experiment: Experiment) -> BlockDropSettings:
    """Return the settings of BlockDrop with a seed: the random path is another one for every seed of the experiment."""
    method: BlockDropSettings = experiment.method
    return method if method.seed is not None else replace(method, seed=experiment.seed)


def unbuildable(
    experiment: Experiment,
    *,
    shape: Shape,
    classes: int,
    most_parameters: int = MOST_PARAMETERS,
    most_derived: int | None = None,
) -> Iterator[Conflict]:
    """Yield why the network of an experiment cannot be built; no weights of built-in networks are allocated for that.

    Args:
        experiment: What to build.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        most_parameters: Largest number of its parameters, without those that a method adds.
        most_derived: Largest number of its layers with which a derivation is tried, which takes seconds with a hundred.

    Yields:
        Conflicts whose keys are those of the experiment as JSON, such as ``method.clusters``.
    """
    yield from _derivation_conflicts(experiment, shape, classes)
    method = experiment.method
    try:
        network = outlined(experiment, shape, classes)
        yield from _too_large(network, most_parameters)
        _require_method(network, method)
        if most_derived is None or not isinstance(network, Branchable) or len(network.layers) <= most_derived:
            yield from _not_derivable(experiment, network)
    except ValueError as error:
        for each in conflicts_in(error):
            if each.keys and each.keys[0].startswith("backbone."):  # of a factory, whatever the method
                yield each
                continue
            yield Conflict(str(each), *(f"method.{key}" for key in each.keys or ("name",)), "method.name", "backbone")
    except NotImplementedError as error:  # the network does not say what a method asks of it
        yield Conflict(f"method.name: {error}", "method.name", "backbone")
    except (OverflowError, RuntimeError, TypeError) as error:  # PyTorch raises each of them for sizes beyond 63 bits
        if isinstance(error, RuntimeError) and "overflow" not in str(error):
            raise
        yield Conflict("backbone: the network is too wide: it has more weights than can be addressed", "backbone")


def _require_method(network: Network, method: Any) -> None:
    """Refuse a method that a network has no nodes, layers or blocks for."""
    if isinstance(method, BlockoutSettings):
        require_nodes(network, method)
    if isinstance(method, DartsSettings):
        assert isinstance(network, Branchable), "built through its graph"
        HierarchyChoices.of(network, method)
    if isinstance(method, BlockDropSettings) and not method.learns:
        fixed_path(method.policy, len(network.blocks), method.kept_blocks)  # type: ignore[arg-type]  # of a ResNet


def _not_derivable(experiment: Experiment, network: Network) -> Iterator[Conflict]:
    """Yield why no smaller network can be derived from what is learned or pruned."""
    if isinstance(experiment.method, BlockoutSettings):
        masked = masked_connections(network.connections, experiment.method.masked)
        yield from learned_conflicts(experiment, network, masked)
    if isinstance(experiment.method, DartsSettings) and isinstance(network, Branchable):
        yield from chosen_conflicts(experiment, network, HierarchyChoices.of(network, experiment.method))
    yield from pruning_conflicts(experiment, network)


def _too_large(network: Network, most: int) -> Iterator[Conflict]:
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    if (total := sum(counts.values())) > most:
        largest = max(counts, key=lambda name: counts[name])
        message = (
            f"backbone: the network must have at most {most:,} parameters, got {total:,}, {counts[largest]:,} of them "
            f"in {largest}; make its layers narrower"
        )
        yield Conflict(message, "backbone")


@lru_cache(maxsize=32)  # the arms of a study often differ in the method alone
def _outline(backbone: Any, architecture: Architecture | None, macs: int | None, shape: Shape, classes: int) -> Network:
    """Return a network without method on the device ``meta``, where weights have a shape and no values."""
    # Nothing is drawn on `meta`, but a layer that draws elsewhere must not disturb the caller's generator.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _built(backbone, architecture, macs, shape, classes, Sites())


def outlined(experiment: Experiment, shape: Shape, classes: int) -> Network:
    """Return the network of an experiment without its method, on the device ``meta``; it is kept, do not change it.

    Args:
        experiment: What is built.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        ValueError: The network cannot be built for these images, or its graph cannot be traced.
    """
    if needs_graph(experiment):
        return outline(experiment.backbone, shape, classes)
    return _outline(experiment.backbone, experiment.architecture, experiment.target_macs, shape, classes)


def built(experiment: Experiment, shape: Shape, classes: int, sites: Sites) -> Network:
    """Return the network of an experiment without a method's wrapper, its weights from PyTorch's global generator.

    Args:
        experiment: What to build.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        sites: Where a method enters.

    Raises:
        ValueError: The network cannot be built for these images.
    """
    backbone, architecture, macs = experiment.backbone, experiment.architecture, experiment.target_macs
    if not needs_graph(experiment):
        return _built(backbone, architecture, macs, shape, classes, sites)
    if architecture is not None or macs is not None:
        backbone = with_new_weights(backbone)  # pretrained nodes that were never chosen are no initial weights
    if torch.get_default_device().type == "meta" and (architecture or macs is not None):
        network = outline(backbone, shape, classes)  # which is shared, as what is cut out of it is new
    else:
        network = build_branchable(backbone, shape, classes, sites)
    assert isinstance(network, GraphNetwork), "networks of stages are built without their graph"
    if architecture is None and macs is not None:
        with torch.device("cpu"):  # memberships have values, also where weights have none
            architecture = narrowed(backbone, macs, shape, classes)
    return network if architecture is None else from_scratch(network, architecture)


def _built(
    backbone: Any, architecture: Architecture | None, macs: int | None, shape: Shape, classes: int, sites: Sites
) -> Network:
    if macs is not None:
        backbone = scaled_to(backbone, macs, shape, classes)
    return backbone_of(backbone).build(backbone, shape, classes, architecture, sites)


def _derivation_conflicts(experiment: Experiment, shape: Shape, classes: int) -> Iterator[Conflict]:
    """Yield before training what would only fail after the first stage has been paid for."""
    confusion = experiment.confusion
    if confusion is None:
        return
    most = most_branches(outline(experiment.backbone, shape, classes))
    if confusion.split_layers > len(most):
        message = f"confusion.split_layers must lie in 1..{len(most)}, got {confusion.split_layers}"
        yield Conflict(message, "confusion.split_layers", "backbone")
    narrowest = most[min(confusion.split_layers, len(most)) - 1]
    if confusion.clustering == "spectral" and confusion.branches > narrowest:
        message = (
            f"confusion.branches must lie in 2..{narrowest}, the fewest nodes or classes of a layer that branches, "
            f"got {confusion.branches}"
        )
        yield Conflict(
            message, "confusion.branches", "confusion.clustering", "confusion.split_layers", "backbone", "data"
        )


def rebuild(experiment: Experiment, architecture: Architecture | None, splits: Splits) -> nn.Module:
    """Return the plain network that an experiment ends in, without trained weights or any trace of its method.

    A network that blockdrop steers keeps its policy, without which it would be another network.

    Args:
        experiment: What was run.
        architecture: What it ended in; None for a network that is not built from stages.
        splits: Give the shape of an image and the number of classes.
    """
    return build(plain(experiment, architecture), splits)


@torch.no_grad()
def expected_macs(
    model: BlockDrop, batches: Iterable[tuple[Tensor, Tensor]], *, device: str | torch.device = "cpu"
) -> int:
    """Return the mean multiply-accumulates an image of a network that skips blocks, its policy counted in.

    Args:
        model: In eval mode.
        batches: Images and labels.
        device: Where the model is.
    """
    macs, flops = [], None
    for x, _ in batches:
        here = x.to(device)
        flops = flops or model.flops(here[:1])
        macs.append(flops.of(model.decide(here)).cpu() / 2)
    return round(float(torch.cat(macs).mean()))


@torch.no_grad()
def paths_taken(
    model: BlockDrop, batches: Iterable[tuple[Tensor, Tensor]], *, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Return which blocks images keep, and what blocks and policy cost, as plain JSON types.

    Args:
        model: In eval mode.
        batches: Images and labels.
        device: Where the model is.

    Returns:
        ``paths``, the distinct ones as lists of 0 and 1; ``path_of``, the number of each image's path among them; and
        the multiply-accumulates an image of ``policy``, ``fixed`` (stem, shortcuts and head) and each of ``blocks``.
    """
    keep = []
    flops = None
    for x, _ in batches:
        here = x.to(device)
        flops = flops or model.flops(here[:1])
        keep.append(model.decide(here).cpu())
    assert flops is not None, "there is an image"
    paths, path_of = torch.cat(keep).unique(dim=0, return_inverse=True)
    return {
        "paths": paths.int().tolist(),
        "path_of": path_of.tolist(),
        "policy": flops.policy // 2,
        "fixed": flops.fixed // 2,
        "blocks": [each // 2 for each in flops.blocks],
    }


def dense_macs(experiment: Experiment, splits: Splits) -> int:
    """Return the multiply-accumulates an image of the dense network of an experiment."""
    return _dense_macs(experiment.backbone, splits.shape, len(splits.class_names))


def matched(experiment: Experiment, macs: int, *, shape: Shape, classes: int) -> Experiment:
    """Return the experiment made to end in a network of given cost.

    A dense network is scaled in width; one that is distilled or pruned gets the cost as its target. With blockdrop, the
    path of a policy that does not read the image keeps the blocks whose cost is nearest, and a network that keeps all
    blocks is scaled in width.

    Args:
        experiment: Of a backbone that has stages, or of the method blockdrop.
        macs: Multiply-accumulates an image to come near to, from below where structure is learned or pruned.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        ValueError: Its branches come from confusions or its paths from the image, whose cost cannot be chosen.
    """
    derivation, method = experiment.derivation, experiment.method
    if isinstance(method, BlockDropSettings):
        require_match(method)
        if method.policy == "all":
            return replace(experiment, backbone=_of_width(experiment.backbone, macs, shape, classes))
        return replace(experiment, method=replace(method, kept_blocks=None, target_macs=macs))
    if derivation is None:
        return replace(experiment, target_macs=macs)
    if isinstance(derivation, ConfusionSettings):
        raise ValueError("the cost of branches from confusions cannot be chosen: remove `match` from the arm")
    share = min(1.0, macs / _dense_macs(experiment.backbone, shape, classes))
    if isinstance(derivation, PruningSettings):
        return replace(experiment, pruning=replace(derivation, target_macs=share))
    return replace(experiment, distillation=replace(derivation, target_macs=share, fill_target=True, thresholds=()))


def require_match(method: BlockDropSettings) -> None:
    """Refuse to match the cost of a policy that reads the image.

    Raises:
        ValueError: Its cost follows from what it learns.
    """
    if method.policy == "learned":
        raise ValueError("the cost of a learned policy follows from its reward: remove `match` from the arm")


@cache
def _of_width(backbone: Any, macs: int, shape: Shape, classes: int) -> Any:
    """Return the settings of a residual network with the width, in 256ths, whose cost is nearest.

    Nothing depends on the width that the settings have: it may be that of another cost.
    """

    def cost(width: int) -> int:
        return _counted_macs(replace(backbone, width=width / _WIDTHS), shape, classes)

    low, high = 1, _WIDTHS
    while cost(high) < macs:
        low, high = high, 2 * high
    while low < high:  # the smallest width that costs as much, by bisection: costs rise with the width
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) >= macs else (middle + 1, high)
    width = min((max(1, low - 1), low), key=lambda each: abs(cost(each) - macs))
    return replace(backbone, width=width / _WIDTHS)


@cache
def _counted_macs(backbone: Any, shape: Shape, classes: int) -> int:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = backbone_of(backbone).build(backbone, shape, classes, None, Sites())
        return count_macs(network.eval(), torch.zeros(1, *shape))


def _dense_macs(backbone: Any, shape: Shape, classes: int) -> int:
    return dense_macs_of(outline(backbone, shape, classes))


def _sites(method: Any) -> Sites:
    registered = method_of(method)
    layer = registered.layer
    if layer is None:
        return Sites()
    if registered.site == "weights":
        return Sites(weights=lambda linear: layer(method, linear), placement=method.placement)
    place = lambda: layer(method)  # noqa: E731  # one factory for whichever site the method names
    if registered.site == "maps":
        return Sites(maps=place, last_maps=method.last_stages)
    return Sites(nodes=place, placement=method.placement)


def plain(experiment: Experiment, architecture: Architecture | None) -> Experiment:
    """Return the experiment without derivation, with this architecture, and without a method other than blockdrop."""
    method = experiment.method if isinstance(experiment.method, BlockDropSettings) else NoneSettings()
    return replace(
        experiment,
        backbone=with_new_weights(experiment.backbone),  # trained ones take the place of those that are pretrained
        method=method,
        training=replace(experiment.training, no_decay=(NORMS_AND_BIASES,)),  # patterns fit names of the first network
        architecture=architecture,
        distillation=None,
        pruning=None,
        confusion=None,
    )


def plain_state(trained: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained values that the plain network has too; wrapped layers keep their names.

    A network that was trained through its graph stands inside it, under the name ``module``.
    """
    return {name: trained[name] if name in trained else trained[f"module.{name}"] for name in plain}
