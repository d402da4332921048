"""One export of all example models, in one go, that the tests of the package read or copy, in whichever process."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nas_blockout.export import export_models
from tests.nas_blockout.export.examples import COLOURED, DESCRIPTION, network, unbranched
from tests.once import once


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported models `branched`, `dense` and those that are not built from stages."""
    return once(tmp_path_factory, "models", export_examples)


def export_examples(folder: Path) -> None:
    dense = network(branched=False).train()
    models = [
        (network(branched=True), folder / "branched", DESCRIPTION),
        (dense, folder / "dense", replace(DESCRIPTION, name="dense", architecture=dense.full.to_json(), equality=None)),
        *((model, folder / name, COLOURED) for name, model in unbranched().items()),
    ]
    seen: list[bool] = []
    found = export_models(models, meanwhile=lambda: seen.extend(target.exists() for _, target, _ in models))
    assert [each.findings for each in found] == [()] * len(models)
    assert seen == [False] * len(models), "called once, before what is not verified yet is put in place"
    assert dense.training, "a model is left as it was"


@pytest.fixture(scope="session")
def copied(exported: Path) -> Callable[[Path], Path]:
    """Copies the exported branched model to a folder that a test may tamper with."""
    return lambda folder: Path(shutil.copytree(exported / "branched", folder))
