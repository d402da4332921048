"""Every broken rule of a study file is told at once, each with file, line, key, value, rule and remedy."""

from pathlib import Path
from typing import Any

import pytest

from services.study_config.errors import MOST_VIOLATIONS, StudyError
from services.study_config.overrides import read_resolved
from services.study_config.resolution import parse, resolve_document
from services.study_config.yaml_reader import read_document

MANY = """\
schema_version: 2
name: Bad Name
budget: {sample_pass: 3, seconds: .inf}
seed: 9223372036854775808 # the largest is one less
training:
  epochs: 4
  learning_rate: .inf
workers: {at_once: 2}
arms:
  a:
    like: b
    method: {name: blockout, charge: 3, clusters: 0}
  b:
    extends: zz
    space: [trainin]
    distillation: {placebo: undivided}
"""
EXPECTED = [
    (2, "name: string should match pattern '^[a-z0-9][a-z0-9-]{0,62}$', got 'Bad Name'"),
    (3, "budget.seconds: must be a finite number, got inf"),
    (3, "budget.sample_pass: no such key; did you mean 'sample_passes'?"),
    (4, "seed: must be less than or equal to 9223372036854775807, got 9223372036854775808"),
    (7, "training.learning_rate: must be a finite number, got inf"),
    (8, "workers.at_once: no such key; version 2 calls it 'max_concurrent_trials'"),
    (11, "arms.a.like: no such key; version 2 calls it 'extends'"),
    (12, "arms.a.method.clusters: must be greater than or equal to 1, got 0"),
    (12, "arms.a.method.charge: no such key; version 2 calls it 'cost_penalty'"),
    (14, "arms.b.extends: no other arm 'zz'; known are a"),
    (15, "arms.b.space: no such search space 'trainin'; did you mean 'training'?"),
    (
        16,
        "arms.b.distillation.placebo: must be 'none', 'nodes', 'classes', 'random' or 'unbranched', got 'undivided'; "
        "version 2 calls it 'unbranched'",
    ),
]
MISFITS = """\
schema_version: 2
name: misfits
budget: {trainings: 9}
training: {epochs: 4}
arms:
  clustered:
    method: {name: dropcluster, start_epoch: 4}
  wrong-space:
    space: [structure]
  twice:
    space: [training, training]
  two-ranges:
    method: {name: dropout}
    space: [regularizers, light_regularizers]
  paths:
    backbone: {name: resnet}
    method: {name: blockdrop}
    space: [regularizers]
  inception:
    backbone: {name: inception}
    method: {name: blockdrop}
  nowhere:
    backbone: {name: resnet, regularized_stages: 0}
    method: {name: dropblock}
  long-warmup:
    training: {warmup_epochs: 4.5}
  two-stages:
    pruning: {}
    training: {warmup_epochs: 3}
  own-branches:
    method: {name: blockout}
    space: [branched]
"""
EXPECTED_MISFITS = [
    (
        7,
        "arms.clustered.method.start_epoch: must be below 4, the epochs of the training; otherwise nothing would be",
    ),
    (9, "arms.wrong-space.space: the space 'structure' needs an arm whose method is blockout"),
    (11, "arms.twice.space: two spaces give the parameter 'optim.lr' different ranges"),
    (14, "arms.two-ranges.space: two spaces give the parameter 'dropout.rate' different ranges"),
    (18, "arms.paths.space: the space 'regularizers' needs a method that drops at a rate, such as dropout"),
    (21, "arms.inception.method.name: the method blockdrop needs a backbone whose blocks can be skipped, resnet"),
    (23, "arms.nowhere.backbone.regularized_stages: must be at least 1, or left out"),
    (26, "arms.long-warmup.training.warmup_epochs: must be at most 4, the epochs of the training, got 4.5"),
    (29, "arms.two-stages.training.warmup_epochs: must be at most 2, the epochs of the shorter of its two stages"),
    (32, "arms.own-branches.space: the method blockout learns its own architecture"),
]


MASKS = """\
schema_version: 2
name: masks
budget: {trainings: 9}
training: {epochs: 4}
backbone: {name: convnet, hidden: [32, 16]}
arms:
  word:
    method: {name: blockout, masked: tail}
  number:
    method: {name: blockout, masked: last two}
  zero:
    method: {name: blockout, masked: last 0}
  kind:
    method: {name: blockout, masked: [3]}
  empty:
    method: {name: blockout, preset: paper, masked: []}
  typo:
    method: {name: blockout, masked: [clases]}
  image:
    method: {name: blockout, masked: [conv1, classes]}
  many:
    method:
      name: blockout
      preset: paper
      masked: last 5
  gap:
    method: {name: blockout, masked: [hidden1, classes]}
    distillation: {}
  base:
    method: {name: blockout, masked: [hidden2, classes]}
  other-backbone:
    extends: base
    backbone: {name: resnet, depth: 8}
"""
FORMS = "must be 'head', 'all', 'last N' or a list of names"
OF_CONVNET = "layers that can be masked on convnet: features, hidden1, hidden2, classes"
EXPECTED_MASKS = [
    (8, f"word.method.masked: {FORMS}, got 'tail'; known are all, head, last N"),
    (10, f"number.method.masked: {FORMS}, got 'last two'; did you mean 'last N'?"),
    (12, f"zero.method.masked: {FORMS}, got 'last 0'; did you mean 'last N'?"),
    (14, f"kind.method.masked: {FORMS}, got [3]"),
    (16, f"empty.method.masked: {FORMS}, got []"),
    (
        18,
        "typo.method.masked: each name must be a layer whose weights can be masked, got 'clases'; "
        f"did you mean 'classes'? {OF_CONVNET}",
    ),
    (
        20,
        "image.method.masked: a layer that reads the image, which has no memberships, cannot be masked, got 'conv1'; "
        f"{OF_CONVNET}",
    ),
    (25, f"many.method.masked: N of 'last N' must lie in 1..4, got 'last 5'; {OF_CONVNET}"),
    (
        27,
        "gap.method.masked: branches are derived from layers that are masked without a gap up to the classes, so "
        "hidden2 must be named too, got ['hidden1', 'classes']; name them or leave out the distillation",
    ),
    (
        31,
        "other-backbone.method.masked: each name must be a layer whose weights can be masked, got 'hidden2'; layers "
        "that can be masked on resnet: block1a, stream1, block2a, stream2, block3a, features, classes",
    ),
]


def refused(path: Path, *assignments: str) -> StudyError:
    with pytest.raises(StudyError) as caught:
        read_resolved(str(path), assignments)
    return caught.value


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_all_errors_of_a_file_are_told_with_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path, MANY)
    error = refused(path)
    assert str(error).splitlines() == [f"{path}:{line}: {text}" for line, text in EXPECTED]
    assert [each.line for each in error.violations] == [line for line, _ in EXPECTED]


def test_parts_that_do_not_fit_together_are_all_told_before_anything_is_run(tmp_path: Path) -> None:
    told = [(each.line, str(each)) for each in refused(written(tmp_path, MISFITS)).violations]
    assert [line for line, _ in told] == [line for line, _ in EXPECTED_MISFITS]
    for (_, found), (_, expected) in zip(told, EXPECTED_MISFITS, strict=True):
        assert found.startswith(expected)


def test_layers_that_cannot_be_masked_are_told_with_those_that_can(tmp_path: Path) -> None:
    path = written(tmp_path, MASKS)
    assert str(refused(path)).splitlines() == [f"{path}:{line}: arms.{text}" for line, text in EXPECTED_MASKS]


def test_layers_to_mask_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, MASKS[: MASKS.index("arms:")] + "arms: {a: {method: {name: blockout, preset: paper}}}\n")
    for value, masked in {"last 2": "last 2", "[hidden2, classes]": ("hidden2", "classes"), "head": "head"}.items():
        study, _ = read_resolved(str(path), [f"arms.a.method.masked={value}"])
        assert study.arms["a"].experiment.method.masked == masked
    error = refused(path, "arms.a.method.masked=last 9")
    assert str(error).startswith(f"{path}: arms.a.method.masked: N of 'last N' must lie in 1..4, got 'last 9'")


def test_a_setting_that_an_arm_takes_over_is_told_once_where_it_stands(tmp_path: Path) -> None:
    text = MISFITS[: MISFITS.index("arms:")].replace("epochs: 4", "epochs: 4, momentum: 1") + "arms: {a: {}, b: {}}\n"
    (violation,) = refused(written(tmp_path, text)).violations
    assert (violation.line, violation.key, violation.value) == (4, "training.momentum", "1")


def test_a_broken_setting_of_a_base_is_told_at_the_base(tmp_path: Path) -> None:
    arms = "arms:\n  base:\n    method: {name: dropout, rate: 2}\n  other: {extends: base, method: {rat: 1}}\n"
    told = [str(each) for each in refused(written(tmp_path, MISFITS[: MISFITS.index("arms:")] + arms)).violations]
    assert told == [
        "arms.base.method.rate: must be less than 1, got 2",
        "arms.other.method.rat: no such key; did you mean 'rate'?",
    ]


def test_what_is_set_on_the_command_line_has_no_line(tmp_path: Path) -> None:
    path = written(tmp_path, MISFITS[: MISFITS.index("arms:")] + "arms: {a: {}}\n")
    error = refused(path, "training.epochs=0", "seed=-1")
    assert str(error).splitlines() == [
        f"{path}: seed: must be greater than or equal to 0, got -1",
        f"{path}: training.epochs: must be greater than or equal to 1, got 0",
    ]


def test_a_document_of_many_wrong_keys_is_refused_quickly_and_briefly() -> None:
    document = {"schema_version": 2, **{f"key{number}": number for number in range(5_000)}}
    with pytest.raises(StudyError) as caught:
        resolve_document(document, source="study")
    assert len(caught.value.violations) == MOST_VIOLATIONS


def test_a_relative_folder_is_meant_from_the_study_file(tmp_path: Path) -> None:
    text = MISFITS[: MISFITS.index("arms:")] + "data: {name: imagefolder, folder: pictures/x}\narms: {a: {}}\n"
    path = written(tmp_path, text)
    assert read_document(path)["data"]["folder"] == str(tmp_path / "pictures" / "x")
    study, _ = read_resolved(str(path))
    assert study.data.folder == str(tmp_path / "pictures" / "x")
    study, _ = read_resolved(str(path), ["data.folder=pictures"])
    assert study.data.folder == str(Path("pictures").absolute())


def test_a_relative_folder_of_a_document_without_a_file_is_refused_with_a_remedy() -> None:
    document: dict[str, Any] = {
        "schema_version": 2,
        "name": "x",
        "budget": {"trainings": 9},
        "data": {"name": "imagefolder", "folder": "pictures"},
        "arms": {"a": {}},
    }
    with pytest.raises(
        StudyError, match=r"data\.folder: must be an absolute path.*got 'pictures'; give the whole path"
    ):
        parse(document, source="study")
