"""The laws that methods, backbones and spaces keep, as functions, for your own as for those of this project.

Each of `method_laws`, `backbone_laws` and `space_laws` returns the laws that apply to one case, by what they say. In a
test suite that is::

    LAWS = backbone_laws(BackboneCase(SmallNetSettings()))

    @pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
    def test_small_net_keeps_the_laws_of_backbones(law):
        law()

A law that is broken raises an AssertionError. Nothing here needs pytest.
"""

from nas_blockout.testing.backbone_laws import BackboneCase, backbone_laws
from nas_blockout.testing.method_laws import MethodCase, method_laws
from nas_blockout.testing.space_laws import SpaceCase, space_laws

__all__ = ["BackboneCase", "MethodCase", "SpaceCase", "backbone_laws", "method_laws", "space_laws"]
