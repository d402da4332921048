"""The studies of the papers are estimated and run for an epoch on stand-ins in their data's own formats.

Networks are shrunk by assignments as of ``--set``, and files have few images; what a study says of its paper is left as
it is. That all bundled studies are valid as they are is tested in `test_schema.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from nas_blockout.data import Splits, load
from nas_blockout.data.sources import cifar, registry
from nas_blockout.experiment import Run
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from services.estimate.forecast import forecast
from services.estimate.measurement import Measured
from services.settings import Settings
from services.study_config.overrides import assigned
from services.study_config.resolution import read, resolve_document
from services.study_config.resolved_study import Study
from services.study_config.validation import check_against_data
from services.study_config.yaml_reader import find, read_with_lines
from services.trial_record import RETRAIN, SEARCH
from tests.nas_blockout.data.sources.test_cifar import miniature, unpacked
from tests.services.tiny import image_folder

Made = Callable[[Path, pytest.MonkeyPatch], str]
SHORT = ("training.epochs=1", "training.batch_size=16")
INCEPTION = (
    "backbone.width=0.03",
    "backbone.hidden=[16, 16]",
    "arms.hard-learned.method.clusters=3",  # at most the classes of the stand-ins
)
RESNET = ("backbone.depth=8", "backbone.width=0.25")


def of_cifar(version: cifar.Version) -> Made:
    def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        small = miniature(version)
        source = replace(registry.SOURCES[version.name], read=partial(cifar.read, small))
        monkeypatch.setattr(registry, "SOURCES", {**registry.SOURCES, version.name: source})
        return f"data.folder={unpacked(folder, small)}"

    return made


def of_folders(folder: Path, _: pytest.MonkeyPatch) -> str:
    for split in ("train", "test"):
        image_folder(folder / split)
    return f"data.folder={folder}"


# By study its stand-in, what shrinks it, and the arms that are run.
STUDIES: dict[str, tuple[Made, tuple[str, ...], tuple[str, ...]]] = {
    "cifar100-table-1": (of_cifar(cifar.CIFAR100), INCEPTION, ("hard-learned", "fc-dropout")),
    "imagenet-table-2": (of_folders, (*INCEPTION, "data.image_size=32"), ("hard-learned",)),
    "dropcluster-resnet50": (
        of_cifar(cifar.CIFAR100),
        (*RESNET, "arms.dropcluster.method.start_epoch=0"),
        ("dropcluster", "dropout"),
    ),
    "blockdrop-resnet110": (
        of_cifar(cifar.CIFAR10),
        (*RESNET, "training.epochs=3", "training.batch_size=64"),
        ("learned",),
    ),
    "blockdrop-resnet101": (of_folders, (*RESNET, "training.epochs=3", "data.image_size=16"), ("without-joint",)),
}


def shrunk(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Splits]:
    make, assignments, arms = STUDIES[name]
    document, _ = read_with_lines(find(name))
    document = assigned(document, [*SHORT, make(folder, monkeypatch), *assignments])
    needed = {*arms, *filter(None, (document["arms"][arm].get("extends") for arm in arms))}
    document["arms"] = {arm: document["arms"][arm] for arm in document["arms"] if arm in needed}
    del document["export"]
    study = resolve_document(document, source=name)
    splits = load(study.data)
    check_against_data(study, splits, source=name)
    return study, splits


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_study_is_estimated_and_runs_for_an_epoch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, splits = shrunk(name, tmp_path, monkeypatch)
    measured = dict.fromkeys(study.arms, Measured(10.0, 0.0, 1000))
    settings = Settings(home=tmp_path, store_url=f"sqlite:///{tmp_path / 'store.db'}")
    found = forecast(study, splits, settings, measured, processors=2)
    for arm in study.arms:
        trials = {phase: cost.trials for phase, cost in found.phases[arm].items()}
        assert trials == {SEARCH: 1, RETRAIN: len(study.config.retrain.seeds)}
    for name_of_arm in STUDIES[name][2]:
        arm = study.arms[name_of_arm]
        run = Run(arm.experiment, splits)
        assert [record.failure for record in run] == [None] * arm.experiment.training.epochs
        assert run.outcome is not None
        learns = isinstance(arm.experiment.method, BlockoutSettings)
        assert set(run.outcome.membership_ends) == ({"hidden1", "hidden2", "classes"} if learns else set())


@pytest.mark.parametrize(
    ("name", "rate", "widths", "clusters"),
    [
        ("table-1", 0.3, [512, 1024, 2048], {2, 4, 6}),
        ("cifar100-table-1", 0.3, [512, 1024, 2048], {2, 4, 6}),
        ("imagenet-table-2", 0.5, [1024, 2048, 4096, 8192], {2, 6, 15}),
    ],
)
def test_the_tables_have_the_settings_of_the_paper(
    name: str, rate: float, widths: list[int], clusters: set[int]
) -> None:
    config = read(find(name))
    arms = config.arms
    assert arms["fc-dropout"].method == {"name": "dropout", "rate": rate}
    learned = {"name": "blockout", "preset": "paper", "masked": "last 2", "clusters": 6}
    assert arms["hard-learned"].method == learned
    assert (arms["fc"].method, arms["fc"].backbone) == (None, None)
    modes = {arm: (arms[arm].extends, arms[arm].method) for arm in ("soft", "hard-fixed")}
    assert modes == {
        "soft": ("hard-learned", {"mode": "soft-learned"}),
        "hard-fixed": ("hard-learned", {"mode": "hard-fixed"}),
    }
    varied = [arm for arm in arms.values() if arm.extends == "hard-learned"]
    assert {(arm.method or {}).get("clusters", 6) for arm in varied} == clusters
    hidden = [(arm.backbone or config.backbone)["hidden"] for arm in varied]
    assert sorted({first for first, _ in hidden}) == widths
    assert all(first == second for first, second in hidden)


def test_the_phases_of_blockdrop_are_as_long_as_in_the_article() -> None:
    for name, lengths, penalty in (("blockdrop-resnet110", (5000, 2000), 10), ("blockdrop-resnet101", (45, 10), 5)):
        config = read(find(name))
        method, epochs = config.arms["learned"].method or {}, config.training["epochs"]
        alone = method["policy_fraction"] * epochs
        joint = epochs - alone - method["pretrain_fraction"] * epochs
        assert (alone, joint) == pytest.approx(lengths, rel=0.02)
        assert (method["preset"], method["penalty"]) == ("paper", penalty)
