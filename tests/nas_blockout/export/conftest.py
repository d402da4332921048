"""One export of all example models, in one go, that the tests of the package read or copy."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nas_blockout.export import export_models
from tests.nas_blockout.export.examples import COLOURED, DESCRIPTION, network, unbranched


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported models `branched`, `dense` and those that are not built from stages."""
    folder = tmp_path_factory.mktemp("models")
    dense = network(branched=False).train()
    models = [
        (network(branched=True), folder / "branched", DESCRIPTION),
        (dense, folder / "dense", replace(DESCRIPTION, name="dense", architecture=dense.full.to_json(), equality=None)),
        *((model, folder / name, COLOURED) for name, model in unbranched().items()),
    ]
    assert [found.findings for found in export_models(models)] == [()] * len(models)
    assert dense.training, "a model is left as it was"
    return folder


@pytest.fixture(scope="session")
def copied(exported: Path) -> Callable[[Path], Path]:
    """Copies the exported branched model to a folder that a test may tamper with."""
    return lambda folder: Path(shutil.copytree(exported / "branched", folder))
