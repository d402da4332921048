"""The notebooks and the guide to Python run from top to bottom, and show what they say."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.notebook_cells import PATIENCE, code_of_guide, code_of_notebook, run
from tests.services.program import here, of

DOCS = Path(__file__).resolve().parents[3] / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(90), pytest.mark.timeout(PATIENCE + 60)]


def comparison(home: Path, study: str) -> dict:
    return json.loads((home / "runs" / study / "comparison.json").read_text())


def test_the_notebook_of_a_first_study(tmp_path):
    shown = run(code_of_notebook(DOCS / "tutorials" / "first-study.ipynb"), tmp_path)
    found = comparison(tmp_path, "first-study")
    assert set(found["arms"]) == {"dense", "learned"}
    assert found["arms"]["learned"]["macs"] <= 0.5 * found["arms"]["dense"]["macs"]
    pages = [cell.get("_repr_html_", "") for cell in shown]
    assert any("data:image/svg+xml;base64," in page for page in pages)
    assert any("Ship " in page or "No model to ship" in page for page in pages)
    assert any("data:image/png;base64," in page for page in pages)
    # What Python has run is a study like any other: the command line shows it.
    listed = here("show", "first-study", "--json", **of(tmp_path, tracking=None))
    assert listed.code == 0, listed.err


def test_the_notebook_of_own_images(tmp_path):
    shown = run(code_of_notebook(DOCS / "tutorials" / "own-images.ipynb"), tmp_path)
    assert "300 train, 90 validation, 150 test; 3x24x24 images, 3 classes" in shown[1]["text"]
    found = comparison(tmp_path, "shapes")
    assert max(arm["test_accuracy"]["mean"] for arm in found["arms"].values()) > 0.5  # chance is a third
    assert len([*(tmp_path / "data" / "arrays").iterdir()]) == 1
    assert shown[-1]["text"].count("'circle'") >= 2


def test_the_notebook_of_an_own_network(tmp_path):
    shown = run(code_of_notebook(DOCS / "tutorials" / "own-network.ipynb"), tmp_path)
    assert not (tmp_path / "runs").exists()
    assert shown[-2]["text"] == "True"
    assert "ok=True" in shown[-1]["text"]
    assert (tmp_path / "smaller-residual-exported" / "model.onnx").is_file()


def test_the_guide(tmp_path):
    cells = code_of_guide(DOCS / "guides" / "python.md")
    # After the guide: what it says of a second run, of the arrays, and of other images under the same name.
    cells.append(
        "before = len(study.trials)\nagain = nb.Study('digits-in-python', **told)\n"
        "again.run(progress=False)\nassert len(again.trials) == before"
    )
    cells.append(
        "other = nb.ArrayData((images[:900], names[labels[:900]]), class_names=names.tolist())\n"
        "changed = nb.Study('digits-in-python', **{**told, 'data': {'name': other, 'augment': 'shift'}})\n"
        "try:\n    changed.results\nexcept LookupError as error:\n    first = str(error)\n"
        "try:\n    changed.run(progress=False)\nexcept Exception as error:\n    second = str(error)\n(first, second)"
    )
    place = next(number for number, cell in enumerate(cells) if "nb.Study(" in cell)
    keys = "told = dict(question=study.resolved.config.question, data={'name': data, 'augment': 'shift'}, "
    keys += "backbone={'name': 'convnet', 'channels': [8], 'hidden': [16]}, "
    keys += "training={'epochs': 4, 'batch_size': 32, 'learning_rate': 0.01}, budget={'trainings': 4}, "
    keys += "retrain={'seeds': [0, 1, 2]}, arms={'dense': {}, 'learned': {'method': {'name': 'blockout'}, "
    keys += "'distillation': {'target_macs': 0.5}}})"
    cells.insert(place + 1, keys)
    shown = run(cells, tmp_path)
    assert "are results of other settings" in shown[-1]["text"]
    assert "data" in shown[-1]["text"]
    rows = pd.read_csv(tmp_path / "runs" / "digits-in-python" / "trials.csv")
    assert sorted(rows["arm"].unique()) == ["dense", "learned"]
    assert len([*(tmp_path / "data" / "arrays").glob("*.safetensors")]) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
