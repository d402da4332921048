"""Resolves one arm of a study, and collects every rule that its settings violate together."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import backbone_named
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Dimensions
from nas_blockout.experiment import DERIVATIONS, Experiment, backbone_from_json, conflicts
from nas_blockout.methods import NoneSettings, Preset, method_from_json, preset_of
from nas_blockout.serialization import from_json
from nas_blockout.settings_fields import Conflict, conflicts_in
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings
from nas_blockout.training import resolved as with_loss
from search_spaces import CHOICES as SPACES
from services.study_config.errors import Violation, violation_at
from services.study_config.layers import ArmSettings
from services.study_config.resolved_study import Arm
from services.study_config.schema import ArmConfig, Match
from services.study_config.search_options import Options
from services.study_config.searching.pruners import fewest_epochs
from services.study_config.searching.warm_starts import Beginning, beginning_of
from services.study_config.validation import (
    NO_BOUNDS,
    Bounds,
    incompatibilities,
    misfits,
    overlong,
    unfit_points,
    unfit_search,
    untrainable,
)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of an experiment, which need not fit together; defaults stand for parts that are unknown."""

    backbone: Any
    method: Any
    training: TrainingSettings
    distillation: DistillationSettings | None
    pruning: PruningSettings | None
    confusion: ConfusionSettings | None
    architecture: Architecture | None = None
    target_macs: int | None = None


@dataclass(frozen=True, slots=True)
class ArmDraft:
    """An arm as the study file has it; what violates a rule by itself is left out.

    Args:
        settings: The merged settings, and which of them are unknown.
        arm: The other keys of the arm.
        base: The other keys of the arm that it extends.
        match: The arm whose cost is matched.
    """

    settings: ArmSettings
    arm: ArmConfig
    base: ArmConfig

    @property
    def match(self) -> Match | None:
        """The arm whose cost is matched, or None."""
        return self.arm.match or self.base.match


class ArmResolver:
    """Resolves one arm and collects the violations between its parts.

    Rules that read an unknown setting are left out: they would only report consequences of what makes it unknown.

    Args:
        draft: The arm.
        study: The study without its arms.
        data: Settings of the data; defaults stand for unknown ones.
        dimensions: What is known of the data; None to leave out what needs it.
        bounds: The largest study that is accepted.

    Attributes:
        violations: The violations found.
        training: Settings of the training; None if those are unknown that decide what it costs.
        fewest_epochs: Of its trials, as far as that is known.
        incomplete: Whether rules were left out.
    """

    def __init__(
        self,
        draft: ArmDraft,
        study: Any,
        data: DataSettings,
        dimensions: Dimensions | None,
        bounds: Bounds = NO_BOUNDS,
    ) -> None:
        self.violations: list[Violation] = []
        self._draft, self._data, self._dimensions, self._bounds = draft, data, dimensions, bounds
        self._settings = draft.settings
        self._layers = draft.settings.layers
        self._options = Options.of(draft.arm, draft.base, study)
        self._spaces = draft.arm.space if draft.arm.space is not None else draft.base.space or []
        self._beginning = self._recalled(str(study.name))
        self._parts = self._read()
        if self._report(overlong(self._parts.training, bounds)):
            self._settings.unknown.add("training.epochs")
        self.fewest_epochs = fewest_epochs(self._parts.training.epochs, self._options.pruner)
        self._experiment = self._checked()
        self.incomplete = self._settings.incomplete or self._experiment is None
        priced = not self._settings.depends_on_unknown(["training.epochs", "training.evaluation_statistics"])
        self.training = self._parts.training if priced else None

    def arm(self) -> Arm:
        """Return the resolved arm, which has no violations."""
        assert self._experiment is not None, "without violations there is an experiment"
        draft = self._draft
        return Arm(
            draft.settings.name,
            self._experiment,
            tuple(SPACES.canonical(space) for space in self._spaces),
            self._options.searcher_name,
            draft.match.arm if draft.match else None,
            draft.arm.description,
            self._options.rules(epochs=self._experiment.training.epochs, beginning=self._beginning),
        )

    def _recalled(self, study: str) -> Beginning | None:
        """Return the trials of an earlier study with which the arm begins, or None if there are none."""
        wanted = self._options.warm_start
        if wanted is None or self._settings.depends_on_unknown(["warm_start"]):
            return None
        try:
            return beginning_of(study, self._settings.name, wanted)
        except Conflict as conflict:
            self._report([conflict])
            return None

    def _report(self, found: Iterable[Conflict]) -> bool:
        """Add conflicts between known settings to the violations; return whether there was any conflict."""
        any_conflict = False
        for conflict in found:
            any_conflict = True
            if not self._settings.depends_on_unknown(conflict.keys):
                place = self._settings.place(conflict.keys)
                self.violations.append(violation_at(place, str(conflict), key=conflict.keys[0]))
        return any_conflict

    def _checked(self) -> Experiment | None:
        """Check everything that is known; return the experiment, or None if its parts do not fit together."""
        parts, settings, matched = self._parts, self._settings, self._draft.match is not None
        refused = self._report(conflicts(parts))
        self._report(incompatibilities(parts, matched=matched))
        self._report(self._options.conflicts(epochs=parts.training.epochs))
        derivations = {name: getattr(parts, name) for name in DERIVATIONS}
        whole = {"data": self._data, "backbone": parts.backbone, "method": parts.method}
        if not refused:
            experiment = Experiment(**whole, training=parts.training, **derivations)
        else:
            # Without training and derivation the network alone may still be possible, and can then be checked.
            try:
                experiment = Experiment(**whole)
            except ValueError:
                return None
            settings.unknown |= {"training", *DERIVATIONS}
        self._check_with_data(experiment, matched=matched)
        return None if refused else experiment

    def _check_with_data(self, experiment: Experiment, *, matched: bool) -> None:
        dimensions = self._dimensions
        misfit = self._report(misfits(experiment, self._spaces, dimensions or Dimensions(), self._bounds))
        if dimensions is None:
            return
        if not misfit:
            self._report(unfit_points(experiment, self._spaces, self._options.enqueue, dimensions, self._bounds))
            searcher, beginning = self._options.searcher.name, self._beginning
            self._report(unfit_search(searcher, beginning, experiment, self._spaces, dimensions, self._bounds))
        grid = self._options.searcher.name == "grid" and not misfit
        found = untrainable(
            experiment,
            self._spaces,
            grid_points=self._options.points if grid else None,
            constraints=self._options.constraints,
            matched=matched,
            data=dimensions,
            bounds=self._bounds,
        )
        self._report(found)

    def _read(self) -> _Parts:
        method = {"name": "none", **self._layers["method"].known}
        if self._layers["method"].nameless:
            method = {"name": "none"}
        preset = preset_of(method)
        backbone = self._backbone(preset)
        return _Parts(
            backbone=self._section("backbone", backbone, backbone_from_json, ConvNetSettings()),
            method=self._section("method", method, method_from_json, NoneSettings()),
            training=self._section("training", self._layers["training"].known, _training, TrainingSettings()),
            **{name: self._derivation(name, kind, preset) for name, kind in DERIVATIONS.items()},
        )

    def _backbone(self, preset: Preset | None) -> Mapping[str, Any]:
        if self._layers["backbone"].nameless:
            return {"name": "convnet"}
        values = self._layers["backbone"].known
        settings = backbone_named(values.get("name", "convnet")).settings
        # A preset is written for one backbone: its values for settings that another backbone lacks have no meaning.
        names = {item.name for item in fields(settings)}
        defaults = {key: value for key, value in preset.backbone.items() if key in names} if preset else {}
        return {**defaults, **values}

    def _derivation(self, name: str, kind: type, preset: Preset | None) -> Any:
        """Return the settings of one kind of derivation, or None if neither the arm nor its base has it."""
        layers = self._layers[name]
        if not layers.path:
            return None
        defaults = preset.distillation if preset and name == "distillation" else {}
        return self._section(name, {**defaults, **layers.known}, _reader(kind, name), kind())

    def _section(
        self, section: str, values: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any], default: Any
    ) -> Any:
        """Return the settings of a section; those that conflict become unknown, and defaults stand for them."""
        values = dict(values)
        while True:
            try:
                return read(values)
            except ValueError as error:
                found = [Conflict(str(each), *each.keys or (section,)) for each in conflicts_in(error)]
            self._report(found)
            for culprits in ({conflict.keys[0] for conflict in found}, {key for each in found for key in each.keys}):
                self._settings.unknown |= culprits
                remaining = {key: value for key, value in values.items() if f"{section}.{key}" not in culprits}
                if len(remaining) < len(values):
                    values = remaining
                    break
            else:  # nothing says which setting is wrong
                self._settings.unknown.add(section)
                return default


def _training(values: Mapping[str, Any]) -> TrainingSettings:
    return with_loss(from_json(TrainingSettings, values, where="training"))


def _reader(kind: type, where: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda values: from_json(kind, values, where=where)
