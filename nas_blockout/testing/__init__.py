"""The laws of methods, backbones, spaces, data, losses and augmentations, as functions, for your own as ours.

Each of `method_laws`, `backbone_laws`, `space_laws`, `source_laws`, `loss_laws` and `augmentation_laws` returns
the laws that apply to one case, by what they say. In a test suite that is::

    LAWS = backbone_laws(BackboneCase(SmallNetSettings()))

    @pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
    def test_small_net_keeps_the_laws_of_backbones(law):
        law()

A law that is broken raises an AssertionError. Nothing here needs pytest.
"""

from nas_blockout.testing.augmentation_laws import AugmentationCase, augmentation_laws
from nas_blockout.testing.backbone_laws import BackboneCase, backbone_laws
from nas_blockout.testing.loss_laws import LossCase, loss_laws
from nas_blockout.testing.method_laws import MethodCase, method_laws
from nas_blockout.testing.source_laws import SourceCase, source_laws
from nas_blockout.testing.space_laws import SpaceCase, space_laws

__all__ = [
    "AugmentationCase",
    "BackboneCase",
    "LossCase",
    "MethodCase",
    "SourceCase",
    "SpaceCase",
    "augmentation_laws",
    "backbone_laws",
    "loss_laws",
    "method_laws",
    "source_laws",
    "space_laws",
]
