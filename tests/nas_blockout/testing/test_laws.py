"""The laws that plug-ins run are kept by what is built in, and broken by what breaks them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.experiment import Experiment
from nas_blockout.methods.blockout import BlockoutSettings
from nas_blockout.methods.dropout import DropoutSettings
from nas_blockout.testing import BackboneCase, MethodCase, SpaceCase, backbone_laws, method_laws, space_laws
from search_spaces import SPACES, Context

SHAPE, CLASSES = (1, 8, 8), 10
NETWORKS = {
    "convnet": BackboneCase(ConvNetSettings((4, 6), (5,))),
    "inception": BackboneCase(InceptionSettings(), (3, 32, 32), branches=False),
    "module": BackboneCase(ModuleSettings("tests/fixtures/networks.py:Small", {"width": 6})),
    "resnet": BackboneCase(ResNetSettings(depth=8, width=0.25), branches=False),
}
ARMS = {
    "training": Experiment(),
    "regularizers": Experiment(method=DropoutSettings()),
    "structure": Experiment(method=BlockoutSettings()),
}


LAWS = {f"{name}-{rule}": law for name, case in NETWORKS.items() for rule, law in backbone_laws(case).items()}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_a_built_in_backbone_keeps_the_laws(law: Callable[[], None]) -> None:
    law()


@pytest.mark.parametrize("name", ARMS)
def test_a_built_in_space_keeps_the_laws(name: str) -> None:
    laws = dict(space_laws(SpaceCase(SPACES[name], Context(ARMS[name], SHAPE, CLASSES), proposals=5)))
    del laws["documented_with_its_parameters"]  # `<method>.rate`, which stands for several
    for law in laws.values():
        law()


def broken(laws: "dict[str, Callable[[], None]]") -> set[str]:
    found = set()
    for name, law in laws.items():
        try:
            law()
        except (AssertionError, ValueError, RuntimeError):
            found.add(name)
    return found


class Careless(nn.Module):
    """Draws from the global generator, and in eval as well."""

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x * torch.rand_like(x)


def test_a_careless_layer_breaks_the_laws() -> None:
    laws = {name: law for name, law in method_laws(MethodCase(Careless)).items() if name != "eval_exports"}
    assert {
        "eval_is_the_plain_layer",
        "eval_is_deterministic_and_draws_nothing",
        "training_without_a_generator_says_what_to_write",
        "same_seed_gives_the_same_output_and_another_seed_another",
        "no_global_randomness_is_consumed",
    } <= broken(laws)


def test_a_careless_space_breaks_the_laws() -> None:
    def careless(trial: object, context: Context) -> Experiment:
        return replace(context.experiment, seed=int(torch.randint(1000, ())))

    laws = dict(space_laws(SpaceCase(careless, Context(Experiment(), SHAPE, CLASSES), proposals=3)))
    assert {
        "proposals_are_valid_and_replay_from_their_record",
        "seed_and_data_are_left_alone",
        "no_global_randomness_is_consumed",
    } <= broken(laws)


def test_a_careless_network_breaks_the_laws() -> None:
    laws = dict(backbone_laws(BackboneCase(ModuleSettings("tests/fixtures/careless_network.py:Careless"))))
    assert {"eval_is_deterministic", "eval_of_an_image_does_not_depend_on_the_others"} <= broken(laws)
