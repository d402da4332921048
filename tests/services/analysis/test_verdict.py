"""The verdict says what was shown, what was not, and which differences could have been detected."""

import pytest

from nas_blockout.architecture import Architecture, Group, Layer, dense_architecture
from nas_blockout.structure.branching import LayerCost, structure_of
from services.analysis.comparison import (
    Accuracy,
    ArmResult,
    BudgetResult,
    ComparisonDocument,
    Cost,
    PairResult,
    Role,
    Spending,
)
from services.analysis.learned_structure import ArmStructure, arm_structure
from services.analysis.verdict import (
    ARM_COLUMNS,
    PAIR_COLUMNS,
    arm_rows,
    arm_verdict,
    note_rows,
    pair_rows,
    sentence,
    verdict_of,
)
from services.trial_record import Trial


def arm(role: Role, mean: float | None, missing: tuple[int, ...] = ()) -> ArmResult:
    seeds = [seed for seed in (0, 1, 2) if seed not in missing]
    accuracy = None
    if mean is not None:
        accuracy = Accuracy(
            mean=mean, std=0.01, ci95=(mean - 0.02, mean + 0.02), per_seed={str(s): mean for s in seeds}
        )
    return ArmResult(
        role=role,
        seeds_cover="retraining",
        trials=4,
        failed=len(missing),
        pruned=0,
        missing_seeds=list(missing),
        cost=Cost(search=Spending(sample_passes=1000), retrain=Spending(sample_passes=3000), overhead_seconds=1.5),
        validation_accuracy=accuracy,
        test_accuracy=accuracy,
        exported_seed=0,
        parameters=12345,
        macs=None,
        macs_per_seed={},
        latency_ms=None,
        architecture=None,
        settings={},
    )


def pair(b: str, difference: float, verdict: str, p: float = 0.01, effect: float | None = 0.012) -> PairResult:
    return PairResult.model_validate(
        {
            "a": "blockout",
            "b": b,
            "difference": difference,
            "ci95": [difference - 0.01, difference + 0.01],
            "seeds": 3,
            "p": p,
            "p_permutation": 0.25,
            "p_holm": p,
            "smallest_effect": effect,
            "verdict": verdict,
        }
    )


def document(
    arms: dict[str, ArmResult],
    pairs: list[PairResult],
    *,
    reason: str | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> ComparisonDocument:
    ranking = sorted(arms, key=lambda name: -(arms[name].test_accuracy.mean if arms[name].test_accuracy else 0))  # type: ignore[union-attr]
    return ComparisonDocument(
        study="by-hand",
        budget=BudgetResult(per_arm=4000, tolerance=0.02),
        arms=arms,
        pairs=pairs,
        ranking=None if reason else ranking,
        ranking_seeds=[] if reason else list(seeds),
        reason=reason,
    )


ARMS = {
    "dense": arm("baseline", 0.90),
    "blockout": arm("learned", 0.92),
    "placebo-nodes": arm("placebo", 0.919),
    "thin": arm("ablation", 0.89),
}


def test_the_sentence_of_a_study_that_shows_one_thing_and_not_another() -> None:
    pairs = [
        pair("dense", 0.02, "better", p=0.004),
        pair("placebo-nodes", 0.001, "no difference shown"),
        pair("thin", 0.03, "better", p=0.00002),
    ]
    assert sentence(document(ARMS, pairs)) == (
        "Not shown that learned structure helps: no difference shown between blockout and placebo-nodes; "
        "by mean test accuracy: blockout 92.00%, placebo-nodes 91.90%, dense 90.00%, thin 89.00%; "
        "blockout is better than dense by 2.00 points (p = 0.004) and thin by 3.00 points (p < 0.0001), "
        "no difference shown between blockout and placebo-nodes, "
        "where 3 seeds could only have shown differences of about 1.20 points or more."
    )


def test_the_verdict_on_an_arm_says_what_its_pairs_show() -> None:
    pairs = [
        pair("dense", 0.02, "better"),
        pair("placebo-nodes", 0.001, "no difference shown"),
        pair("thin", 0.03, "better"),
    ]
    found = document(ARMS, pairs)
    assert arm_verdict(found, "blockout") == (
        "to ship; better than dense and thin; no difference shown to placebo-nodes"
    )
    assert arm_verdict(found, "thin") == "worse than blockout"
    many = {f"arm-{number}": arm("baseline", 0.9) for number in range(4)}
    open_pairs = [pair(name, 0.001, "no difference shown") for name in many]
    assert arm_verdict(document({**ARMS, **many}, open_pairs), "blockout") == ("to ship; no difference shown to 4 arms")
    assert arm_verdict(document(ARMS, [], reason="arms spent different amounts"), "dense") == (
        "arms spent different amounts"
    )


def test_structure_helps_only_if_every_placebo_and_ablation_is_beaten() -> None:
    better = [pair(name, 0.02, "better") for name in ("placebo-nodes", "thin")]
    found = verdict_of(document(ARMS, [*better, pair("dense", -0.01, "no difference shown")]))
    assert found.answer == "yes"
    assert found.headline == (
        "Yes, learned structure helps: blockout is better than every placebo and ablation (placebo-nodes, thin)"
    )
    found = verdict_of(document(ARMS, better[:1]))
    assert found.answer == "not shown"
    assert found.headline.endswith("blockout could not be compared with thin")


def test_structure_that_loses_to_a_placebo_does_not_help() -> None:
    pairs = [pair("placebo-nodes", -0.02, "worse"), pair("thin", 0.02, "better"), pair("dense", 0.02, "better")]
    found = verdict_of(document(ARMS, pairs))
    assert found.answer == "no"
    assert found.headline == (
        "No, learned structure does not help: blockout is worse than placebo-nodes by 2.00 points"
    )


def test_one_learned_arm_that_helps_answers_for_all() -> None:
    arms = {**ARMS, "soft": arm("learned", 0.8)}
    pairs = [pair(name, 0.02, "better") for name in ("placebo-nodes", "thin")]
    pairs += [pair(name, -0.02, "worse").model_copy(update={"a": "soft"}) for name in ("placebo-nodes", "thin")]
    assert verdict_of(document(arms, pairs)).answer == "yes"
    assert verdict_of(document(arms, pairs[2:])).answer == "not shown"


def test_without_a_placebo_nothing_is_said_of_structure() -> None:
    arms = {name: ARMS[name] for name in ("dense", "blockout")}
    text = sentence(document(arms, [pair("dense", -0.02, "worse")]))
    assert text.startswith("Not shown that learned structure helps: the study has no placebo; ")
    assert "blockout is worse than dense by 2.00 points (p = 0.01)" in text


@pytest.mark.parametrize(("seeds", "word"), [(1, "one seed can"), (2, "two seeds can")])
def test_few_seeds_can_show_nothing(seeds: int, word: str) -> None:
    pairs = [
        pair(name, 0.02, "no difference shown", effect=1.2251).model_copy(update={"seeds": seeds})
        for name in ("dense", "placebo-nodes", "thin")
    ]
    text = sentence(document(ARMS, pairs))
    assert text.startswith(
        f"Not shown that learned structure helps: {word} show nothing, a verdict needs 3 or more; by mean test accuracy"
    )
    assert "122.51" not in text
    assert {row[PAIR_COLUMNS.index("detectable")] for row in pair_rows(document(ARMS, pairs))} == {"-"}


def test_that_nothing_branches_is_in_the_headline_whatever_the_answer() -> None:
    structure = ArmStructure(
        exported=structure_of(
            dense_architecture(["features", "classes"], [3, 2]), costs=[LayerCost(n, 1, 1, 1) for n in (4, 2)]
        ),
        learned=True,
        seeds=5,
        branched_seeds=0,
        summary="no branches were learned: nodes were removed (5 of 5 seeds); all ones",
    )
    arms = {**ARMS, "blockout": ARMS["blockout"].model_copy(update={"structure": structure})}
    for outcome in ("better", "worse", "no difference shown"):
        found = verdict_of(document(arms, [pair(name, 0.02, outcome) for name in ("placebo-nodes", "thin")]))
        assert found.headline.endswith(", and no branches were learned: nodes were removed (5 of 5 seeds)")
        assert f"blockout: {structure.summary}" in found.numbers


def test_that_hardly_anything_branches_is_in_the_headline_and_real_branches_are_not() -> None:
    def told(cut: int) -> str:
        hidden = (Group((0,), cut), Group((0, 1), 100 - cut))
        layers = (Layer("features", (Group((1,), 1), Group((0, 1), 9))), Layer("hidden", hidden))
        network = Architecture(2, (*layers, Layer("classes", (Group((0, 1), 2, (0, 1)),))))
        trial = Trial(
            "blockout", "retrain", 0, 0, "complete",
            experiment={"method": {"name": "blockout"}},
            result={"architecture": network.to_json(), "probabilities": {"hidden": [[0.5, 0.5]]}, "gap": {}},
        )  # fmt: skip
        structure = arm_structure([trial], trial, None)
        assert structure is not None
        arms = {**ARMS, "blockout": ARMS["blockout"].model_copy(update={"structure": structure})}
        pairs = [pair(name, 0.0, "no difference shown") for name in ("placebo-nodes", "thin")]
        return verdict_of(document(arms, pairs)).headline

    assert told(5).endswith(", and hardly any branches were learned")
    assert told(90).endswith("between blockout and placebo-nodes and thin")


def test_a_study_without_a_ranking_says_why() -> None:
    text = sentence(document(ARMS, [pair("dense", 0.02, "better")], reason="thin 12.0% less"))
    assert "; no ranking, because thin 12.0% less; blockout is better than dense" in text


def test_a_study_without_pairs_says_so() -> None:
    text = sentence(document(ARMS, [], reason="3 trials have not ended"))
    assert text == "Not shown that learned structure helps: 3 trials have not ended."


def test_without_a_learned_arm_the_best_arm_is_compared() -> None:
    arms = {"a": arm("baseline", 0.8), "blockout": arm("baseline", 0.7)}
    text = sentence(document(arms, [pair("a", -0.1, "worse")]))
    assert text == (
        "Yes, a is the best arm: better than blockout; "
        "by mean test accuracy: a 80.00%, blockout 70.00%; a is better than blockout by 10.00 points (p = 0.01)."
    )
    text = sentence(document(arms, [pair("a", -0.01, "no difference shown")]))
    assert text.startswith("Not shown that a is the best arm: no difference shown between a and blockout; ")
    text = sentence(document({"a": arms["a"]}, [], reason="a ranking needs two arms"))
    assert text == "Not shown which arm is best: a ranking needs two arms."


def test_seeds_without_a_model_are_named() -> None:
    arms = {**ARMS, "thin": arm("ablation", 0.89, missing=(1, 2)), "dense": arm("baseline", 0.9, missing=(1,))}
    text = sentence(document(arms, [pair("thin", 0.01, "no difference shown", effect=None)], seeds=(0,)))
    assert text.endswith("; dense has no model for seed 1; thin has no model for seeds 1 and 2.")
    assert "with these seeds, no difference of any size could have been shown" in text


@pytest.mark.parametrize("reason", [None, "why not"])
def test_tables_have_a_cell_a_column(reason: str | None) -> None:
    found = document(
        ARMS, [pair("dense", 0.02, "better"), pair("thin", 0.01, "no difference shown", effect=None)], reason=reason
    )
    rows = arm_rows(found)
    assert len(pair_rows(found)) == 2
    assert [row[0] for row in rows] == (list(ARMS) if reason else ["blockout", "placebo-nodes", "dense", "thin"])
    assert {len(row) for row in rows} == {len(ARM_COLUMNS)}
    by_name = {row[0]: dict(zip(ARM_COLUMNS, row, strict=True)) for row in rows}
    assert by_name["dense"] == {
        "arm": "dense",
        "test %, 95% interval": "90.00 (88.00 .. 92.00)",
        "validation %": "90.00",
        "MACs": "-",
        "parameters": "12,345",
        "passes": "4,000",
        "seconds": "1.5",
        "failed": "0",
    }
    assert dict(zip(PAIR_COLUMNS, pair_rows(found)[0], strict=True)) == {
        "pair": "blockout - dense",
        "points": "+2.00",
        "95% interval": "+1.00 .. +3.00",
        "Holm": "p = 0.01",
        "detectable": "1.20",
        "verdict": "better",
    }


def test_an_arm_without_a_model_has_dashes() -> None:
    rows = arm_rows(document({"dead": arm("baseline", None)}, [], reason="no retrained model in dead"))
    assert rows[0][:4] == ("dead", "-", "-", "-")


def test_what_trials_say_of_themselves_is_said_once_with_its_arms() -> None:
    said = {"a": ["all", "one"], "b": ["all", "two"], "c": ["all", "two"]}
    noted = {name: arm("learned", 0.9).model_copy(update={"notes": notes}) for name, notes in said.items()}
    assert note_rows(document(noted, [])) == [("all arms", "all"), ("a", "one"), ("b, c", "two")]
    assert note_rows(document({"a": arm("learned", 0.9)}, [])) == []
