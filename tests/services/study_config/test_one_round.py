"""Errors of all three kinds, of keys, between keys and of the data, are reported in one round, each of them once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.data import DataSettings, Splits, dimensions, load
from services.study_config.errors import StudyError
from services.study_config.overrides import read_resolved
from services.study_config.resolution import resolve_document

HEAD = """\
schema_version: 2
name: broken
data: {name: digits, train_samples: 50}
backbone: {name: convnet, channels: [4], hidden: [8]}
training: {epochs: 4, batch_size: 32}
budget: {sample_passes: 1608}
arms:
"""
# Nine arms, each with one fault or more: of single keys (lines 9, 12 and 24), between keys (9, 13, 16, 19, 20 and 27),
# and of what the data decides (22, 29 and 31).
BROKEN = (
    HEAD
    + """\
  typo:
    training: {learning_rat: 0.1, warmup_epochs: 6}
  value:
    training:
      momentum: 1
      warmup_epochs: 5
  inception:
    backbone: {name: inception}
    method: {name: blockdrop}
  space:
    searcher: tpe
    grid_points: 3
    space: [structure]
  network:
    method: {name: blockout, clusters: 9}
  base:
    method: {name: dropout, rate: 2}
  halves:
    extends: base
    pruner: {name: asha, rungs: [4]}
  narrow:
    confusion: {branches: 9}
  costly:
    constraints: {macs: 10}
"""
)
EXPECTED = [
    (9, "arms.typo.training.learning_rat: no such key; did you mean 'learning_rate'?"),
    (
        9,
        "arms.typo.training.warmup_epochs: must be at most 4, the epochs of the training, got 6; warm up for fewer "
        "epochs",
    ),
    (12, "arms.value.training.momentum: must be less than 1, got 1"),
    (
        13,
        "arms.value.training.warmup_epochs: must be at most 4, the epochs of the training, got 5; warm up for fewer "
        "epochs",
    ),
    (
        16,
        "arms.inception.method.name: the method blockdrop needs a backbone whose blocks can be skipped, resnet; got "
        "inception",
    ),
    (19, "arms.space.grid_points: belongs to searcher grid, this arm has searcher tpe"),
    (20, "arms.space.space: the space 'structure' needs an arm whose method is blockout"),
    (22, "arms.network.method.clusters: must lie in 1..nodes, got 9 for nodes=4 in layer 'features'"),
    (24, "arms.base.method.rate: must be less than 1, got 2"),
    (27, "arms.halves.pruner.rungs: must end before the last of 4 epochs, got [4]"),
    (
        29,
        "arms.narrow.confusion.branches: must lie in 2..8, the fewest nodes or classes of a layer that branches, got 9",
    ),
    (
        31,
        "arms.costly.constraints.macs: the network has 2416 and the arm has no search space in which it could have "
        "fewer, got 10; make the network smaller or remove the constraint",
    ),
]


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def refused(path: Path, *assignments: str) -> StudyError:
    with pytest.raises(StudyError) as caught:
        read_resolved(str(path), assignments, load=load)
    return caught.value


def found(document: Mapping[str, Any]) -> list[str]:
    """The violations of a document whose data need not be read."""
    try:
        resolve_document(document, source="study", measure=dimensions)
    except StudyError as error:
        return [str(each) for each in error.violations]
    return []


def test_all_three_kinds_are_reported_together_in_the_order_of_lines(tmp_path: Path) -> None:
    path = written(tmp_path, BROKEN)
    error = refused(path)
    assert [(each.line, str(each)) for each in error.violations] == EXPECTED
    assert str(error).splitlines() == [f"{path}:{line}: {text}" for line, text in EXPECTED]
    assert (
        error.unchecked == "further checks follow once these errors are fixed: of the arms inception, base, halves"
    )  # not of `typo` and `value`: no other rule reads their learning rate or momentum


def test_an_error_is_reported_whether_it_is_alone_or_not() -> None:
    document = yaml.safe_load(BROKEN)
    alone: list[str] = []
    for name in document["arms"]:
        arms = {name: document["arms"][name]}
        if name == "halves":  # the fault of its base is reported with the base
            arms["base"] = {"method": {"name": "dropout"}}
        alone += found({**document, "arms": arms})
    assert sorted(alone) == sorted(found(document)) == sorted(text for _, text in EXPECTED)


def test_data_that_cannot_be_used_is_reported_with_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, BROKEN.replace("train_samples: 50", "train_samples: 50, validation_samples: 999"))
    error = refused(path)
    data = (3, "data.validation_samples: must be at most the 359 images of that split, got 999")
    assert [(each.line, str(each)) for each in error.violations] == [data, *EXPECTED]
    assert error.unchecked is not None
    assert error.unchecked.endswith("and of what depends on the data")


def test_data_that_is_missing_hides_no_network_and_is_hidden_by_none(tmp_path: Path) -> None:
    text = BROKEN.replace("name: digits,", "name: cifar10,").replace("1608", "100")
    error = refused(written(tmp_path, text))
    assert error.violations[0].line == 3
    assert "cifar10" in error.violations[0].rule
    assert error.violations[0].remedy is None or "data fetch cifar10" in str(error.violations[0])
    assert {"arms.network.method.clusters", "arms.narrow.confusion.branches"} <= {each.key for each in error.violations}


def test_a_folder_with_images_is_read_only_to_complete_the_errors(tmp_path: Path) -> None:
    text = BROKEN.replace("{name: digits, train_samples: 50}", "{name: imagefolder, folder: nowhere}")
    read: list[DataSettings] = []

    def counted(settings: DataSettings) -> Splits:
        read.append(settings)
        return load(settings)

    with pytest.raises(StudyError) as caught:
        read_resolved(str(written(tmp_path, text)), load=counted)
    assert len(read) == 1
    first = caught.value.violations[0]
    assert (first.line, first.key) == (3, "data.folder")
    assert first.rule.startswith("imagefolder needs an existing folder")
    assert {"arms.network.method.clusters", "arms.halves.pruner.rungs"} <= {
        each.key for each in caught.value.violations
    }
    sound = written(tmp_path, HEAD.replace("{name: digits,", "{name: imagefolder, folder: x,") + "  dense: {}\n")
    read_resolved(str(sound), load=counted)
    assert len(read) == 1


def test_a_budget_is_checked_although_arms_and_its_own_tolerance_are_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, BROKEN.replace("{sample_passes: 1608}", "{sample_passes: 1607, tolerance: 2}"))
    error = refused(path)
    budget = [(each.line, str(each)) for each in error.violations if each.path[0] == "budget"]
    assert budget == [
        (6, "budget.tolerance: must be less than or equal to 1, got 2"),
        (
            6,
            "budget.sample_passes: must be at least 1608 for arm 'typo', one search trial and 5 retrainings of 268 "
            "passes (4 epochs of 50 images, and 68 to evaluate them), got 1607",
        ),
    ]
    assert len(error.violations) == 2 + len(EXPECTED)


def study(arms: Any) -> dict[str, Any]:
    return {**yaml.safe_load(HEAD + "  none: {}"), "arms": arms}


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        # What a misspelled or wrong key hides is not guessed.
        ({"a": {"training": {"epoch": 9, "warmup_epochs": 6}}}, ["arms.a.training.epoch: no such key"]),
        ({"a": {"training": {"epochs": 0, "warmup_epochs": 6}}}, ["arms.a.training.epochs: must be greater"]),
        (
            {"a": {"backbone": {"hidden": [0]}, "method": {"name": "blockout", "clusters": 9}}},
            ["arms.a.backbone.hidden.0"],
        ),
        ({"a": {"method": {"name": "blokout"}, "space": ["structure"], "distillation": {}}}, ["arms.a.method.name"]),
        ({"a": {"searcher": "gird", "grid_points": 3}}, ["arms.a.searcher: must be"]),
        (
            {"a": {"method": {"name": "blockout", "preset": "papr"}, "backbone": {"name": "inception"}}},
            ["arms.a.method.preset"],
        ),
        # Nothing is concluded from an arm that is not there, or cannot be read.
        (
            {"a": {"extends": "b", "method": {"rate": 0.1}, "backbone": {"depth": 8}}},
            ["arms.a.extends: no other arm 'b'"],
        ),
        ({"a": 3, "b": {"extends": "a", "method": {"rate": 0.1}}}, ["arms.a: "]),
        ({"a": {"method": 3}, "b": {"extends": "a", "method": {"rate": 0.1}}}, ["arms.a.method: "]),
        (
            {"a": {"like": "b", "grid_points": 3}, "b": {"searcher": "grid", "space": ["training"]}},
            ["arms.a.like: no such key"],
        ),
        # A fault is reported once, where it was written.
        (
            {"a": {"training": {"warmup_epochs": 9}}, "b": {"extends": "a"}, "c": {"extends": "a", "searcher": "tpe"}},
            ["arms.a.training.warmup_epochs: must be at most 4"],
        ),
        (
            {"a": {"method": {"name": "blockout", "clusters": 9}}, "b": {"extends": "a", "training": {"epochs": 2}}},
            ["arms.a.method.clusters: must lie in"],
        ),
        # The extended arm may be right, and the one that extends it wrong.
        (
            {"a": {"training": {"warmup_epochs": 3}}, "b": {"extends": "a", "training": {"epochs": 2}}},
            ["arms.b.training.warmup_epochs: must be at most 2"],
        ),
        (
            {
                "a": {"method": {"name": "dropout"}, "space": ["regularizers"]},
                "b": {"extends": "a", "method": {"name": "none"}},
            },
            ["arms.b.space: the space 'regularizers' needs"],
        ),
        # Two conflicts within one section, and one beyond it.
        (
            {
                "a": {
                    "method": {"name": "blockdrop", "kept_blocks": 3, "policy_fraction": 0.9, "pretrain_fraction": 0.2}
                }
            },
            [
                "arms.a.method.kept_blocks: belongs to the policies",
                "arms.a.method.policy_fraction: must be at most 0.8",
                "arms.a.method.name: the method blockdrop needs a backbone",
            ],
        ),
        # A network is checked although its training and its derivation are not possible.
        (
            {"a": {"method": {"name": "blockout", "clusters": 9}, "pruning": {}, "training": {"epochs": 1}}},
            [
                "arms.a.pruning: needs a dense network",
                "arms.a.training.epochs: pruning needs at least 2 epochs",
                "arms.a.method.clusters: must lie in 1..nodes",
            ],
        ),
        # References in a circle, also those that an arm has from the one that it extends.
        ({"a": {"extends": "b"}, "b": {"extends": "a"}}, ["arms.a.extends: 'b' itself", "arms.b.extends: 'a' itself"]),
        (
            {"a": {"match": {"arm": "b"}}, "b": {"extends": "a"}},
            ["arms.a.match.arm: 'b' itself", "arms.b.extends: 'a' matches this arm"],
        ),
        (
            {"a": {"match": {"arm": "d"}}, "b": {"extends": "a"}, "c": {"match": {"arm": "b"}}, "d": {}},
            ["arms.c.match.arm: 'b' itself matches another arm"],
        ),
        ({"a": {"backbone": {"hidden": [10**30]}}}, ["arms.a.backbone: the network is too wide"]),
        # The settings of an arm are checked although its name is wrong.
        ({1: {"training": {"warmup_epochs": 9}}}, ["arms.1: must be a valid string", "arms.1.training.warmup_epochs"]),
        ({"A": {"training": {"warmup_epochs": 9}}}, ["arms.A: string should match", "arms.A.training.warmup_epochs"]),
    ],
)
def test_each_fault_is_reported_once_and_no_consequence_of_another(arms: Any, expected: list[str]) -> None:
    told = found(study(arms))
    assert len(told) == len(expected), told
    for text, start in zip(told, expected, strict=True):
        assert text.startswith(start)


@pytest.mark.parametrize(
    ("change", "unchecked"),
    [
        ({"training": {"learning_rate": -1}}, None),
        ({"training": {"epochs": -1}}, "of the arm a"),
        ({"method": {"name": "dropout", "rate": 3}}, "of the arm a"),
        ({"description": 3}, None),
        ({"nonsense": 3}, None),
    ],
)
def test_a_note_names_the_arms_that_could_not_be_checked_to_the_end(
    change: dict[str, Any], unchecked: str | None
) -> None:
    with pytest.raises(StudyError) as caught:
        resolve_document(study({"a": change, "b": {}}), source="study", measure=dimensions)
    start = "further checks follow once these errors are fixed: "
    assert caught.value.unchecked == (None if unchecked is None else start + unchecked)


def test_wrong_keys_of_the_study_itself_hide_nothing_in_its_arms() -> None:
    document = study({"a": {"training": {"warmup_epochs": 9}}, "b": {"method": {"name": "blockout", "clusters": 9}}})
    document |= {"name": "Bad Name", "seed": -1, "workers": 3, "retrain": {"seeds": [1, 1]}, "export": ["c"]}
    document |= {"objectives": ["macs"], "selection": {"tolerance": 2}, "robustness": {"images": 0}}
    del document["schema_version"], document["budget"]
    keys = [text.partition(":")[0] for text in found(document)]
    expected = (
        "arms.a.training.warmup_epochs arms.b.method.clusters budget export name objectives retrain.seeds "
        "robustness.images schema_version seed selection.objective selection.tolerance workers"
    )
    assert sorted(keys) == expected.split()


def test_a_required_key_that_is_misspelled_is_not_reported_as_missing_too() -> None:
    document = study({"a": {}})
    document["budgte"] = document.pop("budget")
    assert found(document) == ["budgte: no such key; did you mean 'budget'?"]
