"""Pydantic models of the library's settings, generated from the declarations of its dataclasses.

The library declares every setting once, with type, range, default and description (`nas_blockout.settings_fields`). The
checks of study files, their JSON Schema and the OpenAPI document are all derived from these declarations.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import InitErrorDetails, PydanticCustomError

from nas_blockout import backbones, data, methods, training
from nas_blockout.data import DataSettings
from nas_blockout.experiment import DERIVATIONS
from nas_blockout.plugins.choices import Choices
from nas_blockout.serialization import closest, near
from nas_blockout.settings_fields import (
    Conflict,
    Length,
    OneOf,
    Pattern,
    PlainMapping,
    Range,
    alternatives,
    declared,
    unplain,
)
from nas_blockout.training import TrainingSettings
from services.renamed_keys import new_name, renamed_value
from services.search_plugins import PRUNER_CHOICES, SEARCHER_CHOICES
from services.study_config import errors
from services.study_config.errors import MOST_VIOLATIONS, NO_SUCH_KEY, Violation, one_line, shortened

_DEFAULT_BACKBONE = "convnet"
_UNNAMED: Mapping[str, type] = {"data": DataSettings, "training": TrainingSettings, **DERIVATIONS}
_NAMED: Mapping[str, Choices[Any]] = {
    "method": methods.CHOICES,
    "backbone": backbones.CHOICES,
    "searcher": SEARCHER_CHOICES,  # of these only plug-ins: the settings of what is built in are a model already
    "pruner": PRUNER_CHOICES,
}
# By section: settings that may name a plug-in, each with the setting that has the settings of this plug-in.
_OPTIONS: Mapping[str, tuple[tuple[str, str, Choices[Any]], ...]] = {
    "data": (
        ("name", "options", data.CHOICES),
        ("augment", "augment_options", data.AUGMENTATION_CHOICES),
    ),
    "training": (("loss", "loss_options", training.CHOICES),),
}
# Plug-ins whose settings are in the JSON Schema that is being made, as pairs of section and name; built-in ones are
# always in it.
_SHOWN: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("plugins_in_schema", default=())
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class SchemaOf:
    """Marks a mapping of a study file as the settings of a section, for the JSON Schema.

    Pydantic does not check the mapping itself: an arm may change single settings, so `violations` checks the settings
    after they have been merged.

    Args:
        section: ``data``, ``backbone``, ``method``, ``training``, ``distillation``, ``pruning`` or ``confusion``.
        partial: Whether the mapping may change settings given elsewhere, so that the name is optional.
    """

    def __init__(self, section: str, *, partial: bool = False) -> None:
        self.section, self.partial = section, partial

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the section instead of that of a general mapping."""
        of_section = handler(TypeAdapter(_section(self.section, self.partial)).core_schema)
        conditions: list[JsonSchemaValue] = []
        for key, options_key, choices in _OPTIONS.get(self.section, ()):
            for name in shown_plugins(choices.kind):
                options = _model(choices.kind, name, choices.named(name).settings, False, False)
                named = {"properties": {key: {"const": name}}, "required": [key]}
                settings = {"properties": {options_key: handler(TypeAdapter(options).core_schema)}}
                conditions.append({"if": named, "then": settings})
        return {"allOf": [of_section, *conditions]} if conditions else of_section


@contextmanager
def with_plugins(shown: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Show plug-ins in every JSON Schema that is made in this context.

    Args:
        shown: Section, or kind, and name of each, such as ``("backbone", "small_net")`` and ``("loss", "focal")``.
    """
    token = _SHOWN.set(tuple(shown))
    try:
        yield
    finally:
        _SHOWN.reset(token)


def shown_plugins(section: str) -> tuple[str, ...]:
    """Return the names of the plug-ins of a section that are shown in the JSON Schema that is being made."""
    return tuple(name for place, name in _SHOWN.get() if place == section)


def model(section: str, name: str | None = None, *, named: bool = False, partial: bool = False) -> type[BaseModel]:
    """Return the model of the settings of a section.

    Args:
        section: Name of the section, as in `SchemaOf`.
        name: Name of the method or the backbone; None for the other sections.
        named: Whether the model has the required key ``name``.
        partial: Whether the settings are merged with others, so that none but the name is required.

    Raises:
        Conflict: There is no such method or backbone, or it is a plug-in that cannot be used.
    """
    kind = _UNNAMED[section] if name is None else _NAMED[section].named(name).settings
    return _model(section, name, kind, named, partial)


@cache
def _model(section: str, name: str | None, kind: type, named: bool, partial: bool) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    if named:
        fields["name"] = (Literal[name], Field(description=f"Name of the {section}."))
    if section == "method" and name is not None and (recipes := methods.method_named(name).presets):
        presets = tuple(recipes)
        description = "Recipe whose values are the defaults of the other settings."
        fields["preset"] = (Literal[presets], Field(presets[0], description=description))
    for key, setting in declared(kind).items():
        fields[key] = (
            _annotation(setting.hint),
            Field(_default(setting.default, partial), description=setting.sentence),
        )
    changes = "NamedChanges" if named and partial else "Changes" if name is not None and not named else ""
    title = f"{kind.__name__}{changes}"
    return create_model(title, __config__=_STRICT, __doc__=(kind.__doc__ or "").splitlines()[0], **fields)


def _default(default: Any, partial: bool) -> Any:
    if default is MISSING:
        return None if partial else ...  # pydantic's word for a required field
    if isinstance(default, PlainMapping):
        return default.to_json()
    return list(default) if isinstance(default, tuple) else default


def keys(section: str, name: str | None) -> tuple[str, ...]:
    """Return the settings of a section.

    Args:
        section: Name of the section, as in `SchemaOf`.
        name: Name of the method or the backbone, by default the default backbone; unused for the other sections.

    Returns:
        Their keys; none if there is no method or backbone of that name.
    """
    if section not in _NAMED:
        return tuple(model(section).model_fields)
    try:
        return tuple(model(section, name or _DEFAULT_BACKBONE).model_fields)
    except Conflict:
        return ()


def violations(section: str, document: Mapping[str, Any]) -> list[Violation]:
    """Return every rule that the settings of a section violate, with paths that start with the section.

    Args:
        section: Name of the section, as in `SchemaOf`.
        document: The settings, including the name of a method or a backbone.
    """
    if section not in _NAMED:
        return violations_of(model(section), document, (section,))
    choices = _NAMED[section]
    name = document.get("name", _DEFAULT_BACKBONE if section == "backbone" else None)
    if name is None:
        known = ", ".join(sorted(choices.names()))
        return [Violation((section, "name"), f"this key is required: known are {known}")]
    if fault := unusable(choices, name, (section, "name")):
        return [fault]
    values = {key: value for key, value in document.items() if key != "name"}
    return violations_of(model(section, name), values, (section,))


def unusable(choices: Choices[Any], name: Any, path: errors.Path) -> Violation | None:
    """Return why a name is none of a built-in choice or of a plug-in that can be used; None if it is one.

    Args:
        choices: The choices.
        name: What the study file says.
        path: Path of the name in the study file.
    """
    try:
        if choices.is_known(name):
            choices.named(name)
            return None
    except Conflict as conflict:
        return Violation(path, one_line(str(conflict)).removeprefix(f"{choices.key}: "))
    return Violation(path, f"no such {choices.kind}", shortened(name), near(str(name), choices.names()))


def usable_plugins() -> tuple[list[tuple[str, str]], list[str]]:
    """Import every plug-in with settings that is installed and may be imported here.

    Returns:
        Section and name of those that can be used, and of each other one why it cannot.
    """
    usable, faults = [], []
    others = {choices.kind: choices for of_section in _OPTIONS.values() for _, _, choices in of_section}
    for section, choices in {**_NAMED, **others}.items():
        for name in choices.names():
            if name in choices.built_in:
                continue
            try:
                declared(choices.named(name).settings)
            except ValueError as error:
                faults.append(one_line(str(error)))
            else:
                usable.append((section, name))
    return usable, faults


def violations_of(kind: type[BaseModel], document: Any, path: errors.Path) -> list[Violation]:
    """Return every rule of a pydantic model that a document violates.

    Args:
        kind: The model.
        document: Plain values.
        path: Path of the document in the study file.
    """
    try:
        kind.model_validate(document)
    except ValidationError as error:
        return explained(error, kind, path)
    return []


def explained(error: ValidationError, kind: type[BaseModel], path: errors.Path = ()) -> list[Violation]:
    """Return the errors of pydantic as violations.

    Args:
        error: Error that the model raised.
        kind: The model; unknown keys are compared with its fields.
        path: Path of the document in the study file.
    """
    # One more than are reported: then it is known that there are more.
    return [_explained(detail, kind, path) for detail in error.errors(include_url=False)[: MOST_VIOLATIONS + 1]]


def _explained(error: Any, kind: type[BaseModel], path: errors.Path) -> Violation:
    # For a key of a mapping that breaks a pattern, pydantic appends "[key]" to the path.
    inside: errors.Path = tuple(part for part in error["loc"] if part != "[key]")
    place = (*path, *inside)
    if error["type"] == "extra_forbidden":
        return _unknown(place, _fields_at(kind, inside[:-1]))
    if error["type"] == "missing":
        return Violation(place, "this key is required")
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] in ("dict_type", "model_type"):
        rule = "must be a mapping of keys"
    remedy = None
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        known = re.findall("'([^']*)'", error["ctx"]["expected"])  # "'a', 'b' or 'c'": pydantic has it only as text
        now = renamed_value(error["input"])
        remedy = f"version 2 calls it {now!r}" if now in known else near(error["input"], known)
    return Violation(place, rule[:1].lower() + rule[1:], shortened(error["input"]) if place else None, remedy)


def _unknown(place: errors.Path, known: Iterable[str]) -> Violation:
    key, known = str(place[-1]), list(known)
    now = new_name(key)
    if now in known:
        return Violation(place, NO_SUCH_KEY, remedy=f"version 2 calls it {now!r}", meant=now)
    return Violation(place, NO_SUCH_KEY, remedy=near(key, known), meant=closest(key, known))


def _fields_at(kind: type[BaseModel], path: errors.Path) -> Iterable[str]:
    """Return the keys that a model allows at a path inside it."""
    hint: Any = kind
    for part in path:
        inner = _model_in(hint)
        if inner is not None:
            hint = inner.model_fields[str(part)].annotation
        else:  # the key of a mapping or the position in a list
            containers = (option for option in _alternatives(hint) if get_origin(option) in (dict, list))
            hint = get_args(next(containers))[-1]
    inner = _model_in(hint)
    assert inner is not None, "only models refuse keys"
    return inner.model_fields


def _model_in(hint: Any) -> type[BaseModel] | None:
    parts = _alternatives(hint)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _alternatives(hint: Any) -> Iterator[Any]:
    """Yield the types that a hint allows, without unions and annotations."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        for part in get_args(hint):
            yield from _alternatives(part)
    elif hint is not None:
        yield hint


def _annotation(hint: Any) -> Any:
    """Return the type of a pydantic field for the declared type of a setting; tuples are lists in a study file."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        union: Any = Union[tuple(map(_annotation, arguments))]  # noqa: UP007  # of as many members as there are
        # Of several types pydantic would report one error each, for paths that no file has.
        return union if type(None) in arguments else Annotated[union, _one_error(alternatives(hint))]
    if origin is tuple:
        return list[_annotation(arguments[0])]  # type: ignore[misc]  # a type created at run time
    if hint is float:
        return Annotated[float, Field(allow_inf_nan=False)]
    if hint is PlainMapping:
        return Annotated[dict[str, Any], AfterValidator(_plain_values)]
    return _ruled(hint) if origin is Annotated else hint


def _ruled(hint: Any) -> Any:
    """Return the type of a pydantic field for a declared type with rules."""
    arguments = get_args(hint)
    inner: Any = _annotation(arguments[0])
    for rule in arguments[1:]:
        if isinstance(rule, OneOf):
            inner = Literal[rule.values] if rule.others is None else _open(rule.values, rule.others)
        elif isinstance(rule, Pattern):
            inner = Annotated[inner, Field(pattern=f"^{rule.expression}$", examples=[rule.example])]
            inner = Annotated[inner, _in_words(rule.shown)]
        elif isinstance(rule, Length):
            inner = Annotated[inner, Field(min_length=rule.least or None, max_length=rule.most)]
        elif isinstance(rule, Range):
            inner = Annotated[inner, Field(ge=rule.ge, gt=rule.gt, le=rule.le, lt=rule.lt)]
    return inner


def _open(values: tuple[Any, ...], others: Pattern) -> Any:
    """Return the type of one of some values, or of a text of a form that is checked elsewhere."""
    form = Annotated[str, Field(pattern=f"^{others.expression}$", examples=[others.example])]
    expected = f"{', '.join(map(repr, values))} or {others.shown}"
    return Annotated[Literal[values] | form, _one_error(expected)]


def _one_error(expected: str) -> WrapValidator:
    """Return a validator that reports a value of none of several types like one that is none of several words."""

    def validated(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            message = "Input should be {expected}"
            raise PydanticCustomError("literal_error", message, {"expected": expected}) from None

    return WrapValidator(validated)


def _in_words(form: str) -> WrapValidator:
    """Return a validator that states the form of a text in words instead of as a regular expression."""

    def validated(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("form", "Input should be {form}", {"form": form}) from None

    return WrapValidator(validated)


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Report every value that is no plain JSON, each at its own path."""
    faults: list[InitErrorDetails] = [
        {"type": PydanticCustomError("plain", "Input should be {rule}", {"rule": rule}), "loc": path, "input": found}
        for path, rule, found in unplain(values)
    ]
    if faults:
        raise ValidationError.from_exception_data("values", faults)
    return values


def _section(section: str, partial: bool) -> Any:
    """Return the type of a section of a study file."""
    if section not in _NAMED:
        return model(section)
    choices = _NAMED[section]
    shown = (*choices.built_in, *shown_plugins(section))
    names = {name: declared(choices.named(name).settings) for name in shown}
    required = {name for name, kind in names.items() if any(each.default is MISSING for each in kind.values())}
    named: Any = Union[  # noqa: UP007  # as above
        tuple(model(section, name, named=True, partial=partial and name in required) for name in names)
    ]
    kinds: list[Any] = [Annotated[named, Field(discriminator="name")]]
    if partial:
        kinds += [model(section, name, partial=name in required) for name, kind in names.items() if kind]
    elif section == "backbone":
        kinds.append(model(section, _DEFAULT_BACKBONE))
    return Union[tuple(kinds)]  # noqa: UP007  # as above
