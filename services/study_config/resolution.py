"""Checks and resolves the document of a study file as a whole, so that all violated rules are reported at once.

Rules are of three kinds: of single keys, between keys, and between a study and its data. All three are checked in one
pass. What violates a rule by itself becomes unknown (see `services.study_config.layers`); of the other rules, those
that read something unknown are left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas_blockout.data import DataError, DataSettings, Dimensions, dimensions, resolved
from nas_blockout.plugins.named_code import file_of
from nas_blockout.serialization import count_of, from_json, near
from nas_blockout.settings_fields import conflicts_in
from nas_blockout.training import TrainingSettings
from search_spaces import CHOICES as SPACES
from services.plugin_records import records_of
from services.renamed_keys import upgraded_study
from services.study_config import settings_models
from services.study_config.arm_resolution import ArmDraft, ArmResolver
from services.study_config.errors import (
    MOST_VIOLATIONS,
    NO_SUCH_KEY,
    LineMap,
    StudyError,
    Violation,
    one_line,
    violation_at,
    with_lines,
)
from services.study_config.layers import UNKNOWN, ArmSettings, Layers, arms_of, known, marked, sections
from services.study_config.resolved_study import Study, parse_resolved, repeated_folds
from services.study_config.schema import ArmConfig, Budget, StudyConfig
from services.study_config.searching import search_code
from services.study_config.searching.pruners import Pruner
from services.study_config.validation import NO_BOUNDS, Bounds, overpaid, unpaid
from services.study_config.yaml_reader import is_resolved, read_document

Measure = Callable[[DataSettings], Dimensions]
# Substitutes for required keys that are missing or wrong, so that the rest of the file can still be checked.
_STAND_INS: Mapping[str, Any] = {"schema_version": 2, "name": "study"}
_MOST_NAMED = 5  # arms in a note
_MOST_COMPARED = 100
_LIMITS = ("sample_passes", "seconds", "trainings")
# By section: keys that may name files, of data, or of code.
_PATHS: Mapping[str, tuple[str, ...]] = {
    "data": ("name", "augment", "table", "folder"),
    "backbone": ("name", "factory", "weights"),
    "method": ("name",),
    "training": ("loss",),
}
_OF_CODE = ("factory", "name", "augment", "loss")  # of these keys, those of code
# Settings on which neither the networks nor the budget depends.
_IMMATERIAL = frozenset(
    f"data.{key}" for key in ("augment", "augment_options", "split_seed", "validation_samples", "fold")
)


def read(path: Path) -> StudyConfig:
    """Read and check a study file.

    Raises:
        StudyError: It is too large, not valid YAML, or violates rules.
    """
    return parse(read_document(path), source=str(path))


def parse(document: Mapping[str, Any], *, source: str) -> StudyConfig:
    """Check the keys and the settings of a study given as plain values, each of them by itself.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    document = upgraded_study(document)
    violations = _of_keys(document)
    violations += _of_settings(marked(document, violations))
    if violations:
        raise StudyError.of(violations, source=source)
    return StudyConfig.model_validate(document)


def resolve(config: StudyConfig, *, source: str) -> Study:
    """Give every setting its value and check that the parts of every arm fit together.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    return resolve_document(config.model_dump(exclude_unset=True), source=source)


def study_of(
    document: Mapping[str, Any], *, source: str, lines: LineMap | None = None, measure: Measure | None = None
) -> Study:
    """Check and resolve a study given as plain values; a study that is resolved already is only read.

    Args:
        document: Content of a study file, or a result of `Study.to_json`; of version 2 or 1.
        source: Name of the file or other origin of the document, for error messages.
        lines: Lines of the keys, if the document is a file.
        measure: As in `resolve_document`.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    if is_resolved(document):
        return stored_study(document, source=source)
    return resolve_document(document, source=source, lines=lines, measure=measure)


def resolve_document(
    document: Mapping[str, Any],
    *,
    source: str,
    lines: LineMap | None = None,
    measure: Measure | None = None,
    bounds: Bounds = NO_BOUNDS,
) -> Study:
    """Check and resolve a study that is not resolved yet, given as plain values.

    Args:
        document: Content of a study file, of version 2 or 1.
        source: Name of the file or other origin of the document, for error messages.
        lines: Lines of the keys, if the document is a file.
        measure: Returns what is known of the data; it may raise `DataError`, and is not called if their settings are
            wrong. None to check only what needs nothing of the data.
        bounds: The largest study that is accepted.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    document = upgraded_study(document)
    draft = _Draft(document, bounds)
    study = draft.study(measure)
    if draft.violations or study is None:
        raise StudyError.of(with_lines(draft.violations, lines), source=source, unchecked=draft.unchecked)
    return study


def stored_study(document: Mapping[str, Any], *, source: str) -> Study:
    """Return a study from its resolved form, whatever stands in its place.

    Args:
        document: What should be a result of `Study.to_json`, of version 2 or 1.
        source: Where it comes from, for error messages.

    Raises:
        StudyError: This release cannot read it.
    """
    try:
        return parse_resolved(document)
    except ValidationError as error:
        raise StudyError.of(settings_models.explained(error, StudyConfig), source=source) from None
    except StudyError:  # which says what is missing
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(
            f"{source}: not a valid resolved study like `study.yaml` in the folder of a study: {one_line(repr(error))}"
        ) from None


def _of_keys(document: Mapping[str, Any]) -> list[Violation]:
    """Return the violations of single keys, outside the settings of sections."""
    violations = settings_models.violations_of(StudyConfig, document, ())
    paths = {each.path for each in violations}
    meant = {(*each.path[:-1], each.meant) for each in violations if each.meant is not None}
    # A required key that is only misspelled is reported as misspelled, and not as missing, too.
    violations = [each for each in violations if each.rule == NO_SUCH_KEY or each.path not in meant]
    budget = document.get("budget")
    if isinstance(budget, Mapping) and set(budget) == {"tolerance"} and ("budget", "tolerance") in paths:
        # Pydantic checks the budget as a whole only if each of its keys is right.
        violations += settings_models.violations_of(Budget, {}, ("budget",))
    return list(dict.fromkeys(violations))


def _of_settings(document: Mapping[str, Any]) -> list[Violation]:
    """Return the violations of single settings of the study and of its arms.

    Args:
        document: The study, marked.
    """
    violations: list[Violation] = []
    for layers in sections(document):
        violations += layers.violations()
        if len(violations) >= MOST_VIOLATIONS:
            break
    violations += _relative(document)
    return list(dict.fromkeys(violations))  # a setting of the study is checked again with every arm that uses it


def _relative(document: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield paths that are not absolute; in a study from a file they all are."""
    rule = "must be an absolute path if the study does not come from a file, since workers run in other folders"
    sections: list[tuple[tuple[str, ...], Any]] = [
        ((section,), document.get(section)) for section in ("data", "backbone", "training")
    ]
    for name, arm in arms_of(document).items():
        sections += [(("arms", name, key), arm.get(key)) for key in ("backbone", "method", "training")]
    for path, settings in sections:
        for key in _PATHS[path[-1]]:
            text = settings.get(key) if isinstance(settings, Mapping) else None
            if isinstance(text, str) and _is_relative(text, code=key in _OF_CODE):
                yield Violation((*path, key), rule, repr(text), "give the whole path")
    for name, arm in arms_of(document).items():
        for space in arm.get("space") or () if arm.get("space") is not UNKNOWN else ():
            if isinstance(space, str) and _is_relative(space, code=True):
                yield Violation(("arms", name, "space"), rule, repr(space), "give the whole path")
        for place, code in search_code.named(name, arm):
            if _is_relative(code, code=True):
                yield Violation(place, rule, repr(code), "give the whole path")


def _is_relative(text: str, *, code: bool) -> bool:
    file = file_of(text) if code else Path(text)
    return file is not None and not file.is_absolute()


def _references(document: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield references to arms and spaces that do not exist or cannot be referred to there.

    Args:
        document: The study, marked.
    """
    named = document.get("arms")
    # Also arms whose settings cannot be read, but none whose name is no text.
    names = dict.fromkeys(name for name in named if isinstance(name, str)) if isinstance(named, Mapping) else {}
    arms = arms_of(document)
    for name, arm in arms.items():
        extended = arm.get("extends")
        if isinstance(extended, str):
            yield from _extended(name, extended, names, arms)
        yield from _matched(name, names, arms)
        for space in arm.get("space") or () if arm.get("space") is not UNKNOWN else ():
            yield from _space(space, ("arms", name, "space"))
        yield from search_code.violations(name, arm)
    export = document.get("export")
    for name in export if isinstance(export, list) and names else ():
        if name not in names:
            yield Violation(("export",), f"no arm {name!r}", remedy=_near_arm(name, names))


def _space(name: str, path: tuple[str, ...]) -> Iterator[Violation]:
    if not SPACES.is_known(name):
        yield Violation(path, f"no such search space {name!r}", remedy=near(name, SPACES.names()))
    elif fault := settings_models.unusable(SPACES, name, path):
        yield fault


def _near_arm(other: str, names: Iterable[str], *, name: str | None = None) -> str:
    """Return the end of an error about an unknown arm; of thousands, only the first are compared with it."""
    return near(other, [each for each in islice(names, _MOST_COMPARED) if each != name])


def _extended(
    name: str, other: str, names: Mapping[str, None], arms: Mapping[str, Mapping[str, Any]]
) -> Iterator[Violation]:
    path = ("arms", name, "extends")
    if other == name or other not in names:
        yield Violation(path, f"no other arm {other!r}", remedy=_near_arm(other, names, name=name))
    elif arms.get(other, {}).get("extends") is not None:
        yield Violation(path, f"{other!r} itself extends another arm; name that one")


def _matched(name: str, names: Mapping[str, None], arms: Mapping[str, Mapping[str, Any]]) -> Iterator[Violation]:
    match, owner = _match(name, arms)
    other = match.get("arm") if isinstance(match, Mapping) else None
    if not isinstance(other, str):
        return
    path = ("arms", owner, "match", "arm")
    if owner != name and other == name:
        rule = f"{owner!r} matches this arm, which extends it and so would match itself; match another arm"
        yield Violation(("arms", name, "extends"), rule, repr(owner))
    elif other == name or other not in names:
        yield Violation(path, f"no other arm {other!r}", remedy=_near_arm(other, names, name=name))
    elif _match(other, arms)[0] is not None:
        # The widths of an arm are known once the search of the arm that it matches has ended. In a chain, the last arm
        # would have to wait for two searches one after the other.
        yield Violation(path, f"{other!r} itself matches another arm; name that one")


def _match(name: str, arms: Mapping[str, Mapping[str, Any]]) -> tuple[Any, str]:
    """Return the key `match` of an arm, and the arm that it comes from."""
    arm = arms.get(name, {})
    if arm.get("match") is None and isinstance(base := arm.get("extends"), str):
        return arms.get(base, {}).get("match"), base
    return arm.get("match"), name


@dataclass(frozen=True, slots=True)
class _Data:
    """The data of a study that may violate rules.

    Args:
        settings: Their settings; defaults stand for unknown ones.
        unknown: Dotted keys of the settings that are unknown, as far as networks or the budget depend on them.
        dimensions: What is known of the data; None if nothing that depends on it is to be checked.
        unread: Whether the data could not be read.
    """

    settings: DataSettings
    unknown: frozenset[str]
    dimensions: Dimensions | None
    unread: bool = False


class _Draft:
    """A study that may violate rules.

    Args:
        document: The study as plain values, of version 2.
        bounds: The largest study that is accepted.

    Attributes:
        violations: The violations found so far.
        unchecked: What could not be checked, in a sentence; None if everything was.
    """

    def __init__(self, document: Mapping[str, Any], bounds: Bounds) -> None:
        self.violations: list[Violation] = []
        self._bounds = bounds
        self.unchecked: str | None = None
        self._document: Mapping[str, Any] = document
        self._arms = arms_of(document)
        number = len(named) if isinstance(named := document.get("arms"), Mapping) else 0
        if bounds.arms is not None and number > bounds.arms:  # which may be too many to look at
            rule, remedy = (
                f"a study must have at most {count_of(bounds.arms, 'arm')}",
                "divide them between several studies",
            )
            self.violations.append(Violation(("arms",), rule, str(number), remedy))
            self.unchecked = "further checks follow once there are fewer"
            return
        # Nobody reads on after a hundred errors, and to look for thousands would take time.
        for rules in (_of_keys, _references, _of_settings):
            if len(self.violations) < MOST_VIOLATIONS:
                found = rules(self._document)
                self._add(islice(found, MOST_VIOLATIONS + 1))  # one more shows that there are more

    def study(self, measure: Measure | None) -> Study | None:
        """Check the rules between keys and, with `measure`, those of the data; return the study if all are kept."""
        if self.unchecked or len(self.violations) >= MOST_VIOLATIONS:
            return None
        try:
            config = self._config()
        except ValidationError as error:  # a rule that pydantic checks only now that other keys are left out
            self.violations += settings_models.explained(error, StudyConfig)
            return None
        data = self._data(measure)
        resolvers: dict[str, ArmResolver] = {}
        for name in self._arms:
            if len(self.violations) < MOST_VIOLATIONS:
                draft = self._arm(name, data)
                resolvers[name] = ArmResolver(draft, config, data.settings, data.dimensions, self._bounds)
                self.violations += resolvers[name].violations
        trainings = {name: each.training for name, each in resolvers.items() if each.training is not None}
        self.violations += self._unpaid(config, trainings, data)
        fewest = [each.fewest_epochs for each in resolvers.values() if each.training is not None]
        if self._has_limit():
            images = data.dimensions.train_images if data.dimensions else None
            self.violations += overpaid(
                config.budget, self._bounds, arms=len(self._arms), fewest_epochs=fewest, images=images
            )
        self.unchecked = _sentence([name for name, each in resolvers.items() if each.incomplete], data)
        if self.violations:
            return None
        arms = {name: resolver.arm() for name, resolver in resolvers.items()}
        # Recorded now, with the versions that were imported to check the settings.
        return Study(config, arms, data.settings, records_of(arm.code for arm in arms.values()))

    def _add(self, found: Iterable[Violation]) -> None:
        violations = list(found)
        self.violations += violations
        self._document = marked(self._document, violations)
        self._arms = arms_of(self._document)

    def _config(self) -> StudyConfig:
        """Return the study without what is unknown."""
        values = _without_fragments(known({key: value for key, value in self._document.items() if key != "arms"}))
        rest = {**_STAND_INS, **values, "arms": {"arm": {}}}
        if not self._has_limit():
            rest["budget"] = {**values.get("budget", {}), "trainings": 2**62}  # a limit that no rule finds too low
        config = StudyConfig.model_validate(rest)
        arms = {name: self._arm_config(name) for name in self._arms}
        if not self.violations:
            return StudyConfig.model_validate(self._document)
        return config.model_copy(update={"arms": arms})

    def _has_limit(self) -> bool:
        """Whether a limit of the budget is known."""
        budget = known(self._document.get("budget"))
        return isinstance(budget, Mapping) and any(budget.get(limit) is not None for limit in _LIMITS)

    def _arm_config(self, name: str | None) -> ArmConfig:
        """Return the keys of an arm without what is unknown; those of no arm if there is none of that name."""
        values = known(dict(self._arms[name])) if name in self._arms else {}
        return ArmConfig.model_validate(_without_fragments(values))

    def _arm(self, name: str, data: _Data) -> ArmDraft:
        settings = ArmSettings(self._document, self._arms, name)
        settings.unknown |= data.unknown
        return ArmDraft(settings, self._arm_config(name), self._arm_config(settings.base_name))

    def _data(self, measure: Measure | None) -> _Data:
        layers = Layers.merged("data", [(("data",), self._document.get("data"))])
        unknown, values = set(layers.unknown()), layers.known
        while not {"data", "data.name"} & unknown:
            try:
                settings = resolved(from_json(DataSettings, values, where="data"))
            except ValueError as error:
                found = conflicts_in(error)
            else:
                return self._measured(settings, frozenset(unknown - _IMMATERIAL), measure)
            self.violations += [
                violation_at(tuple(each.keys[0].split(".")), str(each), key=each.keys[0])
                for each in found
                if not unknown.intersection(each.keys)
            ]
            culprits = {each.keys[0] for each in found}
            remaining = {key: value for key, value in values.items() if f"data.{key}" not in culprits}
            # Where leaving out the wrong setting helps nothing, such as a folder that is missing, no data is known.
            unknown |= culprits if len(remaining) < len(values) else {"data"}
            values = remaining
        return _Data(DataSettings(), frozenset({"data"}), None if measure is None else Dimensions())

    def _measured(self, settings: DataSettings, unknown: frozenset[str], measure: Measure | None) -> _Data:
        if measure is None:
            return _Data(settings, unknown, None)
        if unknown - {"data.train_samples"}:
            measure = dimensions  # the files that would be read are not those that are meant
        unread = False
        try:
            found = measure(settings)
        except DataError as error:
            self.violations.append(_of_data(error, settings))
            unread = True
            found = dimensions(replace(settings, train_samples=None))
        if unread or "data.train_samples" in unknown:
            found = replace(found, train_images=None)
        if "data.image_size" in unknown and settings.has_files:
            found = replace(found, shape=None)
        return _Data(settings, unknown, found, unread)

    def _unpaid(
        self, config: StudyConfig, trainings: Mapping[str, TrainingSettings], data: _Data
    ) -> Iterator[Violation]:
        retrain = self._document.get("retrain", {})
        if retrain is UNKNOWN or retrain.get("seeds") is UNKNOWN:
            return
        if "data.folds" not in data.unknown:
            yield from repeated_folds(data.settings, len(config.retrain.seeds))
        if data.dimensions is None:
            return
        images = data.dimensions.train_images
        yield from unpaid(config.budget, seeds=len(config.retrain.seeds), trainings=trainings, images=images)


def _without_fragments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return known keys without mappings of which a required key is unknown, and with a name for every pruner."""
    whole = dict(values)
    for key, required in (("match", "arm"), ("selection", "objective"), ("warm_start", "study")):
        if whole.get(key) is not None and required not in whole[key]:
            del whole[key]
    if isinstance(whole.get("searcher"), Mapping) and "name" not in whole["searcher"]:
        del whole["searcher"]
    if whole.get("pruner") is not None and "name" not in whole["pruner"]:
        if set(whole["pruner"]) <= set(Pruner.model_fields):
            whole["pruner"] = {"name": "asha", **whole["pruner"]}
        else:  # settings of a plug-in whose name is wrong
            del whole["pruner"]
    return whole


def _of_data(error: DataError, settings: DataSettings) -> Violation:
    """Return an error of data that cannot be read, at the setting that the message names."""
    text = str(error)
    key = next((item.name for item in fields(settings) if text.startswith(f"{item.name} ")), None)
    if key is None:
        # A table lies in a folder: its path has that of the folder in it.
        key = next((each for each in ("table", "folder") if (place := getattr(settings, each)) and place in text), None)
    path = ("data",) if key is None else ("data", key)
    return violation_at(path, text, key=".".join(path))


def _sentence(arms: list[str], data: _Data) -> str | None:
    """Return what could not be checked, or None."""
    left_out = []
    if arms:
        more = f" and {len(arms) - _MOST_NAMED} more" if len(arms) > _MOST_NAMED else ""
        left_out.append(f"of the arm{'s' * (len(arms) > 1)} {', '.join(arms[:_MOST_NAMED])}{more}")
    if data.unread or data.unknown:
        left_out.append("of what depends on the data")
    return f"further checks follow once these errors are fixed: {', and '.join(left_out)}" if left_out else None
