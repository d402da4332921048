"""The laws of backbones: what a network that studies train must do."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.backbones import name_of
from nas_blockout.experiment import Experiment, backbone_from_json, built_for_training, outline
from nas_blockout.serialization import to_json
from nas_blockout.testing.seeds import SEED, no_global_randomness, seeded

Shape = tuple[int, int, int]
_BATCH = 4


@dataclass(frozen=True, slots=True)
class BackboneCase:
    """One network under the laws.

    Args:
        settings: Of a backbone; of a plug-in, as `nas_blockout.experiment.backbone_from_json` returns them.
        shape: Channels, height and width of an image.
        classes: Number of classes, 2 or more.
        branches: Whether its graph can be traced, so that it may be masked, pruned and branched.
    """

    settings: Any
    shape: Shape = (1, 8, 8)
    classes: int = 5
    branches: bool = True

    def network(self, seed: int = SEED) -> nn.Module:
        """Return the network as a study builds it, in training mode."""
        experiment = Experiment(backbone=self.settings, seed=seed)
        return built_for_training(experiment, shape=self.shape, classes=self.classes).train()

    def images(self) -> Tensor:
        """Return a batch of images, shape ``(batch, channels, height, width)``."""
        return torch.rand(_BATCH, *self.shape, generator=seeded())


def backbone_laws(case: BackboneCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws that apply to a network, by what they say.

    Args:
        case: The network.
    """
    laws: list[Callable[[BackboneCase], None]] = [
        settings_survive_json,
        one_logit_a_class,
        eval_is_deterministic,
        eval_of_an_image_does_not_depend_on_the_others,
        same_seed_gives_the_same_weights_and_another_seed_others,
        building_uses_no_global_randomness,
        gradient_reaches_every_parameter,
        state_makes_another_network_the_same,
        a_deep_copy_is_the_same,
        eval_exports,
    ]
    laws += [its_graph_is_known] if case.branches else []
    return {law.__name__: partial(law, case) for law in laws}


def settings_survive_json(case: BackboneCase) -> None:
    """The settings are read back from what is recorded of them."""
    document = {"name": name_of(case.settings), **to_json(case.settings)}
    assert backbone_from_json(document) == case.settings
    assert hash(backbone_from_json(document)) == hash(case.settings)


def one_logit_a_class(case: BackboneCase) -> None:
    """Images become finite logits of shape ``(batch, classes)``, in training and in eval."""
    for training in (True, False):
        logits = case.network().train(training)(case.images())
        assert logits.shape == (_BATCH, case.classes)
        assert bool(logits.isfinite().all())


def eval_is_deterministic(case: BackboneCase) -> None:
    """In eval the network returns the same again."""
    network, images = case.network().eval(), case.images()
    assert torch.equal(network(images), network(images))


def eval_of_an_image_does_not_depend_on_the_others(case: BackboneCase) -> None:
    """In eval an image has the logits that it has alone, up to the rounding of other kernels."""
    network, images = case.network().eval(), case.images()
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-5)


def same_seed_gives_the_same_weights_and_another_seed_others(case: BackboneCase) -> None:
    """Initial weights depend on the seed of the experiment and on nothing else."""
    first, second, other = (list(case.network(seed).parameters()) for seed in (SEED, SEED, SEED + 1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(first, other, strict=True))


def building_uses_no_global_randomness(case: BackboneCase) -> None:
    """To build a network leaves the global generators as they were."""
    with no_global_randomness():
        case.network()


def gradient_reaches_every_parameter(case: BackboneCase) -> None:
    """No parameter is left without a gradient."""
    network = case.network()
    network(case.images()).square().sum().backward()
    missing = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == [], f"no gradient reaches {', '.join(missing)}"


def state_makes_another_network_the_same(case: BackboneCase) -> None:
    """A network of the same settings with the saved state computes the same."""
    network, other, images = case.network(), case.network(SEED + 1), case.images()
    network(images)  # which changes statistics of normalization
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(images), network.eval()(images))


def a_deep_copy_is_the_same(case: BackboneCase) -> None:
    """A deep copy computes the same."""
    network, images = case.network().eval(), case.images()
    assert torch.equal(copy.deepcopy(network)(images), network(images))


def eval_exports(case: BackboneCase) -> None:
    """In eval the network is exported by PyTorch for any size of batch, and computes the same."""
    network, images = case.network().eval(), case.images()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False).module()
    torch.testing.assert_close(exported(images), network(images))
    torch.testing.assert_close(exported(images[:1]), network(images[:1]), rtol=1e-4, atol=1e-5)


def its_graph_is_known(case: BackboneCase) -> None:
    """The network has layers of nodes, so that it can be masked, pruned and branched."""
    network = outline(case.settings, case.shape, case.classes)
    assert len(network.layers) > 1
    assert network.macs_under({}) > 0
