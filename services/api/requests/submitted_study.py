"""Checks a submitted or extended study: against the schema, what the operator allows, and bounds of its size."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nas_blockout.data import DataSettings, Dimensions, dimensions
from nas_blockout.plugins.choices import allowing
from services.api.errors import SOURCE
from services.api.requests import allowed_code
from services.settings import Settings
from services.study_config.errors import StudyError, Violation, with_lines
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.study_config.validation import Bounds, check_against_dimensions
from services.study_config.yaml_reader import line_map

_FILES = ("folder", "table")  # settings of the data that name files


def checked(document: Mapping[str, Any], settings: Settings, *, measured: bool = True) -> Study:
    """Validate and resolve a submitted study, without reading its data, which this machine may not have.

    Args:
        document: The study as plain values.
        settings: Settings of the service, which say what code a study may run, and how large it may be.
        measured: Whether to check its networks and its budget, as far as the data need not be read for that.

    Raises:
        StudyError: It violates rules, is too large, names files, through which a client could read files of the
            cluster, or names code or weights that the operator does not allow; nothing of these is imported.
    """
    refused = [*_files(document), *allowed_code.refused(document, settings)]
    measure = _measure(document) if measured else None
    try:
        with allowing(settings.allows_origin):
            study = resolve_document(document, source=SOURCE, measure=measure, bounds=_bounds(settings))
    except StudyError as error:
        # Each is reported once: that it must be omitted makes the other rules about it pointless.
        paths = {violation.path for violation in refused}
        others = [violation for violation in error.violations if violation.path not in paths]
        raise StudyError.of([*others, *refused], source=SOURCE, unchecked=error.unchecked) from None
    if refused:
        raise StudyError.of(refused, source=SOURCE)
    return study


def checked_with_lines(document: Mapping[str, Any], settings: Settings, text: str | None) -> Study:
    """Return a submitted study, resolved; its errors have the lines of the YAML that it was read from, if it was.

    Raises:
        StudyError: It violates rules, see `checked`.
    """
    try:
        return checked(document, settings)
    except StudyError as error:
        if text is None:
            raise
        violations = with_lines(error.violations, line_map(text))
        raise StudyError.of(violations, source=SOURCE, unchecked=error.unchecked) from None


def check_networks(study: Study, document: Mapping[str, Any], settings: Settings) -> None:
    """Check the networks and the budget of a study that `checked` has not measured, within the same bounds.

    Raises:
        StudyError: As in `checked`.
    """
    data = _measure(document)(study.data)
    with allowing(settings.allows_origin):
        check_against_dimensions(study, data, source=SOURCE, bounds=_bounds(settings))


def _bounds(settings: Settings) -> Bounds:
    # Tracing would keep the service busy: what depends on it is checked by the job of the study, before it trains.
    return Bounds(**dict(settings.api_study_limits), traced=False)


def _measure(document: Mapping[str, Any]) -> Callable[[DataSettings], Dimensions]:
    """Return what tells the dimensions of the data: only the number of images where networks must not be built here."""
    if not allowed_code.names_network(document):
        return dimensions
    return lambda settings: replace(dimensions(settings), shape=None, classes=None)


def _files(document: Mapping[str, Any]) -> list[Violation]:
    data = document.get("data")
    rule, remedy = (
        "must be omitted in studies submitted to the service",
        "omit it, or run the study with `nas-blockout submit`",
    )
    return [
        Violation(("data", key), rule, named, remedy)
        for key in _FILES
        if isinstance(data, Mapping) and isinstance(named := data.get(key), str)
    ]
