"""The plug-in keeps the laws of nas-blockout."""

from collections.abc import Callable

import pytest
from example_plugin.exposure import EXPOSURE, ExposureSettings
from example_plugin.focal_loss import FOCAL, FocalSettings
from example_plugin.noise_space import noise_amplitude
from example_plugin.stripes import STRIPES, StripesSettings
from example_plugin.uniform_noise import UniformNoise, UniformNoiseSettings

from nas_blockout.experiment import Experiment, backbone_from_json
from nas_blockout.methods import method_from_json
from nas_blockout.testing import (
    AugmentationCase,
    BackboneCase,
    LossCase,
    MethodCase,
    SourceCase,
    SpaceCase,
    augmentation_laws,
    backbone_laws,
    loss_laws,
    method_laws,
    source_laws,
    space_laws,
)
from search_spaces import Context
from services.testing import PrunerCase, SearchCase, pruner_laws, searcher_laws

SHAPE, CLASSES = (1, 8, 8), 4
NET = backbone_from_json({"name": "small_net", "width": 4})
NOISE = method_from_json({"name": "uniform_noise"})
LAWS = [
    *backbone_laws(BackboneCase(NET, SHAPE, CLASSES)).items(),
    *method_laws(
        MethodCase(
            lambda: UniformNoise(UniformNoiseSettings(0.3)),
            keep_all=lambda: UniformNoise(UniformNoiseSettings(0)),
            method="uniform_noise",
        )
    ).items(),
    *space_laws(SpaceCase(noise_amplitude, Context(Experiment(backbone=NET, method=NOISE), SHAPE, CLASSES))).items(),
    *source_laws(SourceCase(STRIPES, StripesSettings(images=10))).items(),
    *loss_laws(LossCase(FOCAL, FocalSettings(3))).items(),
    *augmentation_laws(AugmentationCase(EXPOSURE, ExposureSettings())).items(),
    *searcher_laws(SearchCase("one_plus_one", {"step": 0.2}, trials=6)).items(),
    *pruner_laws(PrunerCase("far_behind", {"gap": 0.3})).items(),
]


@pytest.mark.parametrize("law", [law for _, law in LAWS], ids=[name for name, _ in LAWS])
def test_law(law: Callable[[], None]) -> None:
    law()
