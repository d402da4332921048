"""One export of all example models, in one go, that the tests of the package read or copy, in whichever process."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork
from nas_blockout.backbones.inference import FusedNetwork
from nas_blockout.backbones.inference_cost import Operations, Runtime
from nas_blockout.export import export_models
from tests.nas_blockout.export.examples import (
    COLORED,
    CONSTANT,
    DESCRIPTION,
    PROBABILITIES,
    STAGES,
    network,
    unbranched,
)
from tests.once import once


class Told(BranchedNetwork):
    """Remembers for what its form to be run was asked."""

    asked: tuple[tuple[Runtime, int | None], ...] = ()

    def for_inference(
        self, *, operations: Operations = "fastest", runtime: Runtime = "torch", batch: int | None = None
    ) -> FusedNetwork:
        self.asked = (*self.asked, (runtime, batch))
        return super().for_inference(operations=operations, runtime=runtime, batch=batch)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported models `branched`, `dense` and those that are not built from stages."""
    return once(tmp_path_factory, "models", export_examples)


def export_examples(folder: Path) -> None:
    dense = Told(STAGES, dense_of(STAGES), channels=1).train()
    dense.load_state_dict(network(branched=False).state_dict())
    models = [
        (network(branched=True), folder / "branched", DESCRIPTION),
        (
            dense,
            folder / "dense",
            replace(
                DESCRIPTION,
                name="dense",
                architecture=dense.full.to_json(),
                equality=None,
                batch=256,
                probabilities=PROBABILITIES,
            ),
        ),
        (
            network(branched=True, architecture=CONSTANT),
            folder / "constant",
            replace(DESCRIPTION, name="constant", architecture=CONSTANT.to_json()),
        ),
        *((model, folder / name, COLORED) for name, model in unbranched().items()),
    ]
    seen: list[bool] = []
    found = export_models(models, meanwhile=lambda: seen.extend(target.exists() for _, target, _ in models))
    assert [each.findings for each in found] == [()] * len(models)
    assert seen == [False] * len(models), "called once, before what is not verified yet is put in place"
    assert dense.training, "a model is left as it was"
    assert dense.asked == (("torch", 256), ("onnxruntime", 256)), "divided for the images that are expected"


@pytest.fixture(scope="session")
def copied(exported: Path) -> Callable[[Path], Path]:
    """Copies the exported branched model to a folder that a test may tamper with."""
    return lambda folder: Path(shutil.copytree(exported / "branched", folder))
