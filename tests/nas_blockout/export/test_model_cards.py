"""Cards in the form that Hugging Face's hub reads: parsed by its own package, and what they say of a model's origin."""

import getpass
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nas_blockout.export.card_metadata import NO_LICENSE, with_license
from nas_blockout.export.card_sections import Provenance, Rival
from nas_blockout.export.cards import ModelDescription, card
from tests.nas_blockout.export.examples import DESCRIPTION

hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")

PROVENANCE = Provenance(
    source="1,797 handwritten digits",
    validation_images=449,
    split_seed=3,
    augmentation="shift",
    epochs=12,
    searcher="tpe",
    trials=8,
    budget="1,000 sample passes",
    seeds=(0, 1, 2, 3, 4),
    mean_accuracy=0.89123456,
    interval=(0.88, 0.91),
    rivals=(Rival("dense", "baseline", "89.00% on average, 5 seeds", 4321),),
    environment={"nas_blockout": "1.0", "torch": "2.9"},
    commit="a" * 40,
)
FOUND = replace(DESCRIPTION, provenance=PROVENANCE)
ESTIMATE = {"value": 0.5, "ci95": [0.25, 0.75]}
ERROR = {"images": 449, "nll": ESTIMATE, "ece": {"value": 0.0625, "ci95": [0.05, 0.075]}}
CALIBRATION = {"temperature": 1.5, "validation": {"before": ERROR, "after": ERROR}, "test": None}


def parsed(description: ModelDescription, license: str | None = None):
    text = card(description)
    return hub.ModelCard(text if license is None else with_license(text, license))


def test_the_hub_reads_the_front_matter_and_both_results() -> None:
    data = parsed(FOUND).data
    assert (data.library_name, data.pipeline_tag, data.datasets) == ("nas-blockout", "image-classification", ["digits"])
    assert {"neural-architecture-search", "onnx"} <= set(data.tags)
    assert data.model_name == "example-branched"
    results = [(each.metric_type, each.metric_value, each.metric_name) for each in data.eval_results]
    assert results == [
        ("accuracy", 0.9, "Test accuracy of this model, seed 0"),
        ("accuracy", 0.891235, "Mean test accuracy, 5 seeds"),
    ]
    assert {(each.task_type, each.dataset_type, each.dataset_split) for each in data.eval_results} == {
        ("image-classification", "digits", "test")
    }
    assert data.license is None


def test_the_front_matter_is_the_yaml_that_the_hubs_own_writer_gives_back() -> None:
    text = card(FOUND)
    front = yaml.safe_load(text.split("---\n")[1])
    assert yaml.safe_load(hub.ModelCard(text).data.to_yaml()) == front


@pytest.mark.parametrize("name", ['q"uote: #1', "- a\n- b", "漢字 😀", "a\x07\x85b", "yes"])
def test_no_name_breaks_the_front_matter(name: str) -> None:
    shown = "".join(each if each.isprintable() else " " for each in " ".join(name.split()))
    assert parsed(replace(FOUND, name=name)).data.model_name == f"example-{shown}"


@pytest.mark.parametrize(("data", "known"), [("cifar10", ["uoft-cs/cifar10"]), ("imagefolder", None)])
def test_data_sets_have_the_names_of_the_hub_and_own_images_none(data: str, known: list[str] | None) -> None:
    assert parsed(replace(FOUND, data=data)).data.datasets == known


def test_a_card_says_which_fold_was_held_out() -> None:
    told = " ".join(card(replace(FOUND, provenance=replace(PROVENANCE, folds=5, fold=2))).split())
    assert "in 5 folds: this training held out fold 2, those with other seeds the others." in told
    assert "validation accuracy, each on the fold that it held out. Trainings of folds share images" in told
    assert "held out" not in card(FOUND)


def test_a_model_that_was_not_tested_has_no_results() -> None:
    found = replace(FOUND, test_accuracy=None, test_images=None)
    assert parsed(found).data.eval_results is None
    assert "The test accuracy of this model was not measured." in card(found)


def test_a_license_is_named_once_or_its_lack_is_said() -> None:
    assert NO_LICENSE in card(FOUND)
    text = with_license(with_license(card(FOUND), "mit"), "apache-2.0")
    assert hub.ModelCard(text).data.license == "apache-2.0"
    assert NO_LICENSE not in text
    with pytest.raises(ValueError, match="no front matter"):
        with_license("# A card of an earlier release", "mit")


def test_the_card_says_where_the_model_comes_from() -> None:
    text = card(FOUND)
    for expected in (
        "## Intended use\n",
        "`digits`: 1,797 handwritten digits. 100 images were trained on for 12 epochs",
        "449 other images decided every choice. The split has the seed\n3.",
        "of the training images alone: 0.3 and 0.4.",
        "| this model, seed 0 | 90.00% | | 1 |\n| mean over seeds | 89.12% | 88.00% to 91.00% | 5 |",
        "8 trials, retrainings included, by `tpe`, each\narm with a budget of 1,000 sample passes.",
        "retrained with the seeds 0, 1, 2, 3, 4.",
        "| `dense` | baseline | 89.00% on average, 5 seeds | 4,321 |",
        "Verdict of the study: No difference shown.",
        f"Software: nas_blockout 1.0, torch 2.9, commit `{'a' * 40}`.",
        "The softmax of the logits is not calibrated",
    ):
        assert expected in text
    assert "the commit of nas_blockout is not known" in card(
        replace(FOUND, provenance=replace(PROVENANCE, commit=None))
    )


def test_a_model_that_was_cut_has_no_mean_of_seeds_that_were_not_cut() -> None:
    cut_from = {"name": "branched", "classes": 9, "parameters": 5, "macs": 6, "equality": {}}
    text = card(replace(FOUND, cut_from=cut_from))
    assert "| mean over seeds |" not in text
    assert len(hub.ModelCard(text).data.eval_results) == 1


def test_the_card_says_how_good_the_probabilities_are() -> None:
    novelty = {"energy": 2.25, "quantile": 0.01, "images": 449}
    text = card(replace(FOUND, probabilities={"temperature": 1.5, "calibration": CALIBRATION, "novelty": novelty}))
    assert "Divide the logits by the temperature 1.5 before the softmax." in text
    assert (
        "| validation, 449 images | expected calibration error | 0.0625 (0.0500 to 0.0750) | 0.0625 (0.0500 to 0.0750)"
    ) in text
    assert "There are no numbers of test images" in text
    assert "An image is less like the validation images than 99% of 449 of them if" in text
    assert "is below 2.25, or if" in text
    tested = {**CALIBRATION, "test": {"before": {**ERROR, "images": 540}, "after": ERROR}}
    with_test = card(replace(FOUND, probabilities={"temperature": 1.5, "calibration": tested}))
    assert "| test, 540 images | negative log-likelihood | 0.5000 (0.2500 to 0.7500) |" in with_test
    assert "no numbers of test" not in with_test


def test_the_card_of_an_exported_model_names_neither_machine_nor_user_nor_folder(exported: Path) -> None:
    text = (exported / "branched" / "card.md").read_text()
    for private in (platform.node(), str(exported), str(Path.home())):
        assert private not in text
    assert f"/{getpass.getuser()}" not in text
