"""A figure that would have nothing to show is replaced by the sentence that says so."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.structure.branching import LayerCost, structure_of
from services.analysis.learned_structure import arm_structure
from services.report import ReportView, render
from services.report.structure import mask_pairs
from services.trial_record import Trial
from tests.services.report.test_report import Page, check_figures, parsed

MadeUp = Callable[..., ReportView]
ARMS = ("dense", "blockout")
ONE_GROUP = Architecture(
    4,
    (
        Layer("features", (Group((0, 1, 2, 3), 60),)),
        Layer("hidden", (Group((0, 1, 2, 3), 64),)),
        Layer("classes", (Group((0, 1, 2, 3), 4, (0, 1, 2, 3)),)),
    ),
)
COSTS = [LayerCost(width, 1, 1, 2) for width in (96, 128, 4)]


def collapsed(trial: Trial) -> Trial:
    """The same trial with probabilities that are all ones, nearly: they differ in the third digit."""
    found = trial.outcome.get("probabilities")
    if not found:
        return trial
    ones = {
        layer: [[0.999 + 0.001 * ((node + cluster) % 2) for cluster in range(len(row))] for node, row in enumerate(p)]
        for layer, p in found.items()
    }
    structure = structure_of(ONE_GROUP, costs=COSTS, inputs=1).to_json()
    result = {
        **trial.outcome, "probabilities": ones, "architecture": ONE_GROUP.to_json(), "structure": structure,
    }  # fmt: skip
    return replace(trial, result=result, experiment={"method": {"name": "blockout"}})


def view_of(made_up: MadeUp, change: Callable[[Trial], Trial] = lambda trial: trial, **options: Any) -> ReportView:
    settings = {"arms": ARMS, "seeds": 3, "classes": 4, "length": 4, "trials": 2, **options}
    view = made_up(change=change, **settings)
    models = view.models("blockout")
    if models:
        exported = next(t for t in models if t.seed == view.comparison["arms"]["blockout"]["exported_seed"])
        told = arm_structure(models, exported, None) if exported.outcome.get("structure") else None
        arms = {**view.comparison["arms"]}
        arms["blockout"] = {**arms["blockout"], "structure": told.model_dump(mode="json") if told else None}
        view = replace(view, comparison={**view.comparison, "arms": arms})
    return view


def remarks(page: Page) -> dict[str, str]:
    return {
        element.attributes["id"]: element.text
        for element in page.all("p")
        if element.attributes.get("class") == "remark"
    }


def test_a_structure_that_collapsed_is_told_in_sentences_and_not_drawn(made_up: MadeUp) -> None:
    page = parsed(render(view_of(made_up, collapsed)))
    check_figures(page)
    names = [figure.attributes["id"] for figure in page.all("figure")]
    assert not [name for name in names if name.startswith(("classes", "projection", "masks", "architecture"))]
    said = {name.rpartition("-")[0]: text for name, text in remarks(page).items()}
    assert set(said) == {"classes", "projection", "masks"}
    assert "the same number of clusters, 3.9980 to 3.9980 of 4, in 3 seeds" in said["classes"]
    assert "the probabilities of a node differ by 0.001 on average and 0.001 at most" in said["masks"]
    assert 'The reason is that of "Masks, with nodes sorted by cluster: blockout".' in said["projection"]


def test_nodes_that_are_kept_or_dropped_as_a_whole_are_no_branches(made_up: MadeUp) -> None:
    def kept_or_dropped(trial: Trial) -> Trial:
        found = trial.outcome.get("probabilities")
        if not found:
            return trial
        whole = {name: [[float(node % 3 > 0)] * len(row) for node, row in enumerate(p)] for name, p in found.items()}
        return replace(trial, result={**trial.outcome, "probabilities": whole})

    said = {name.rpartition("-")[0] for name in remarks(parsed(render(view_of(made_up, kept_or_dropped))))}
    assert said == {"projection", "masks"}


def test_that_nothing_branches_is_in_the_verdict_and_in_the_section(made_up: MadeUp) -> None:
    page = parsed(render(view_of(made_up, collapsed)))
    verdict = next(e.text for e in page.all("p") if e.attributes.get("class", "").startswith("verdict"))
    assert "no branches were learned: nodes were removed (3 of 3 seeds)" in verdict
    (numbers,) = [e.text for e in page.all("ul") if e.attributes.get("class") == "numbers"]
    told = (
        "blockout: no branches were learned: nodes were removed (3 of 3 seeds); the membership probabilities of "
        "features, hidden, classes collapsed to all ones (3 of 3 seeds)"
    )
    assert told in numbers, "in the verdict, and not once more in the section"
    table = next(t.text for t in page.all("table") if "How far each exported network branches" in t.text)
    assert "features60 of 9611" in table.replace("\n", "")


def test_to_which_end_probabilities_came_is_in_the_verdict_and_in_the_section(made_up: MadeUp) -> None:
    view = view_of(made_up)
    ended = {"seeds": 3, "layers": {"hidden": {"stayed": 3}}, "summary": "membership probabilities stayed in hidden"}
    arms = {**view.comparison["arms"]}
    arms["blockout"] = {**arms["blockout"], "memberships": ended}
    page = parsed(render(replace(view, comparison={**view.comparison, "arms": arms})))
    assert any(f"blockout: {ended['summary']}" in element.text for element in page.all("ul"))
    (table,) = [each.text for each in page.all("table") if "To which end the membership probabilities" in each.text]
    assert f"blockout3{ended['summary']}" in table.replace("\n", "")
    assert not [each for each in parsed(render(view)).all("table") if "To which end the membership" in each.text]


def test_a_structure_that_branches_is_drawn(made_up: MadeUp) -> None:
    page = parsed(render(view_of(made_up)))
    assert remarks(page) == {}
    names = [figure.attributes["id"] for figure in page.all("figure")]
    assert {"classes", "projection", "masks", "architecture"} <= {name.rpartition("-")[0] for name in names}


def test_the_strongest_of_equal_clusters_is_no_group_of_classes(made_up: MadeUp) -> None:
    page = parsed(render(view_of(made_up, collapsed)))
    assert not [table for table in page.all("table") if "Adjusted mutual information" in table.text]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("accuracy", {"arms": ["dense"], "seeds": 1}, "There is only one retrained model"),
        ("front-macs", {"arms": ["dense"], "seeds": 2}, "Only dense has a known cost"),
        ("best-so-far", {"arms": ["random"], "trials": 1}, "Each search has one trial"),
        ("best-so-far", {"arms": ["dense"], "trials": 1}, "No search trial ended with an accuracy"),
        ("convergence", {"arms": ["dense"], "length": 1}, "The models were trained for one epoch"),
        ("accuracy", {"keep": lambda trial: not trial.is_model}, "There is no retrained model"),
    ],
)
def test_other_figures_with_nothing_to_show(made_up: MadeUp, name: str, options: dict[str, Any], said: str) -> None:
    page = parsed(render(view_of(made_up, **options)))
    check_figures(page)
    assert said in remarks(page)[name]
    assert name not in [figure.attributes["id"] for figure in page.all("figure")]


def test_without_a_mistake_there_are_no_confusions_to_draw(made_up: MadeUp) -> None:
    def perfect(trial: Trial) -> Trial:
        counts = [[36 if label == guess else 0 for guess in range(4)] for label in range(4)]
        return replace(trial, result={**trial.outcome, "confusion": counts}) if trial.is_model else trial

    said = remarks(parsed(render(view_of(made_up, perfect))))
    assert "Every test image was classified correctly" in said["confusion"]


def test_probabilities_that_never_moved_are_not_drawn(made_up: MadeUp) -> None:
    view = view_of(made_up)
    still = [0.0] * 19 + [1.0]

    def stopped(record: dict[str, Any]) -> dict[str, Any]:
        telemetry = {key: still if "density" in key else 1.0 for key in record["telemetry"]}
        return {**record, "telemetry": telemetry}

    epochs = {key: [stopped(dict(record)) for record in records] for key, records in view.epochs.items()}
    said = remarks(parsed(render(replace(view, epochs=epochs))))
    (text,) = [text for name, text in said.items() if name.startswith("density")]
    assert "No membership probability left its bin of .05 from the end of the first of 2 epochs on" in text


def test_one_epoch_of_learning_is_not_called_no_learning(made_up: MadeUp) -> None:
    """What is recorded is the end of each epoch: of one there is nothing to compare with."""
    view = view_of(made_up)
    epochs = {key: list(records)[:1] for key, records in view.epochs.items()}
    said = remarks(parsed(render(replace(view, epochs=epochs))))
    (text,) = [text for name, text in said.items() if name.startswith("density")]
    assert "Structure was learned in one epoch: there is no course to draw." in text


def test_masks_are_drawn_along_the_edges_of_a_graph_and_of_many_the_largest() -> None:
    chain = {"layers": []}
    p = {name: [[0.5]] * nodes for name, nodes in {"stem": 4, "block": 6, "classes": 2}.items()}
    assert mask_pairs(p, chain) == (None, "From each layer (columns) to the next (rows)")
    edges = [[None, "stem"], ["stem", "block"], ["block", "stem"], ["stem", "classes"], ["head", "classes"]]
    pairs, told = mask_pairs(p, {"edges": edges})
    assert pairs == [("stem", "block"), ("block", "stem"), ("stem", "classes")], "without layers that have no P"
    assert told == "From each layer (columns) to each that reads it (rows)"
    many = {f"layer{number}": [[0.5]] * (1 + number) for number in range(21)}
    names = list(many)
    pairs, told = mask_pairs(many, {"edges": [list(pair) for pair in pairwise(names)]})
    assert pairs == list(pairwise(names))[-12:]
    assert told.endswith(", the 12 pairs with the most nodes of 20")


def test_passes_of_arms_that_spent_alike_are_told_in_a_sentence(made_up: MadeUp) -> None:
    alike = parsed(render(view_of(made_up, arms=["dense", "random"], keep=lambda trial: trial.is_model)))
    assert "All 2 arms spent the same: 1,800 in retraining." in remarks(alike)["cost-passes"]
    page = parsed(render(view_of(made_up, arms=["dense", "placebo-nodes"])))
    assert "cost-passes" in [figure.attributes["id"] for figure in page.all("figure")], "a placebo has no search"


def test_latencies_that_tell_no_two_models_apart_are_not_drawn(made_up: MadeUp) -> None:
    view = view_of(made_up, arms=["dense", "random", "blockout"])
    arms = {name: dict(arm) for name, arm in view.comparison["arms"].items()}
    for number, arm in enumerate(arms.values()):
        middle = {"batch_1": 0.2 + 0.01 * number, "batch_1_quartiles": [0.18, 0.25 + 0.01 * number]}
        arm["latency_ms"] = {**arm["latency_ms"], **middle}
    said = remarks(parsed(render(replace(view, comparison={**view.comparison, "arms": arms}))))
    assert "No two of the 3 models are told apart in latency" in said["front-latency"]
    assert "from 0.18 to 0.27 ms an image" in said["front-latency"]


def test_a_network_that_two_arms_ended_in_is_drawn_once(made_up: MadeUp) -> None:
    view = view_of(made_up, arms=["dense", "random", "bayesian", "confusion"])
    arms = {name: dict(arm) for name, arm in view.comparison["arms"].items()}
    arms["random"]["architecture"] = arms["bayesian"]["architecture"]
    page = parsed(render(replace(view, comparison={**view.comparison, "arms": arms})))
    told = [text for name, text in remarks(page).items() if name.startswith("architecture")]
    assert len(told) == 1
    assert "It is the same as that of " in told[0]
    figures = [figure.attributes["id"] for figure in page.all("figure")]
    assert len([name for name in figures if name.startswith("architecture")]) == 2
