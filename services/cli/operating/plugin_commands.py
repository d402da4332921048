"""``nas-blockout plugins``: which choices of other packages are installed, and the settings of one."""

from dataclasses import MISSING
from typing import Annotated, Any, get_args, get_origin

import typer

from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.installed import GROUPS, Origin, installed
from nas_blockout.settings_fields import Range, declared
from services.cli import lazy_modules as lazy
from services.cli.console import NOT_FOUND, JsonOption, fail, print_json, print_line, print_table, table

KindArgument = Annotated[str | None, typer.Argument(help=f"Kind of the choice: {', '.join(GROUPS)}.")]
NameArgument = Annotated[str | None, typer.Argument(help="Its name, as in a study file; its code is imported.")]


def plugins(kind: KindArgument = None, name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the plug-ins that are installed, or show the settings of one choice, such as a method or a searcher.

    Without a name only the metadata of packages is read, and nothing is imported.
    """
    if kind is not None and kind not in GROUPS:
        fail(NOT_FOUND, f"there is no kind of plug-ins {kind!r}; known are {', '.join(GROUPS)}")
    if kind is None or name is None:
        _list({each: installed(each) for each in ([kind] if kind else GROUPS)}, as_json=as_json)
        return
    choices = _choices(kind)
    try:
        found, origin = choices.named(name), choices.origin(name)
    except ValueError as error:
        fail(NOT_FOUND, str(error).removeprefix(f"{choices.key}: "))
    described, rows = _described(kind, name, found)
    if as_json:
        settings = [dict(zip(("setting", "type", "default", "what it is"), row, strict=True)) for row in rows]
        print_json({"kind": kind, "name": name, "from": str(origin or "built in"), "settings": settings})
        return
    print_line(f"{kind} {name}, {f'of the plug-in {origin}' if origin else 'built in'}: {described}")
    if rows:
        print_table(table(("setting", "type", "default", "what it is"), rows))


def _choices(kind: str) -> Choices[Any]:
    rooms: dict[str, Any] = {
        "backbone": lazy.backbones,
        "method": lazy.methods,
        "space": lazy.search_spaces,
        "source": lazy.data,
        "loss": lazy.training,
    }
    if kind == "augmentation":
        of_augmentation: Choices[Any] = lazy.data.AUGMENTATION_CHOICES
        return of_augmentation
    of_search = {"searcher": "SEARCHER_CHOICES", "pruner": "PRUNER_CHOICES"}
    choices: Choices[Any] = getattr(lazy.search_plugins, of_search[kind]) if kind in of_search else rooms[kind].CHOICES
    return choices


def _described(kind: str, name: str, found: Any) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Return what a choice is, in one line, and a row for each of its settings."""
    if kind == "space":
        return _first_line(found), []
    if kind == "augmentation" and isinstance(found, tuple):  # of parts that have no settings
        return "see the documentation of `data.augment`", []
    if isinstance(found, tuple):  # built-in ones of the search: names of settings, which a model of pydantic has
        model = lazy.searchers.SearcherOptions if kind == "searcher" else lazy.pruners.Pruner
        return f"Settings of {name}.", [_row_of_model(key, model.model_fields[key]) for key in found]
    summary = getattr(found, "summary", "") if kind in ("searcher", "pruner", "loss", "augmentation") else ""
    rows = [_row(key, setting) for key, setting in declared(found.settings).items()]
    return summary or _first_line(found.settings), rows


def _first_line(described: Any) -> str:
    return (described.__doc__ or "").partition("\n")[0]


def _list(found: dict[str, tuple[Origin, ...]], *, as_json: bool) -> None:
    names = ("kind", "name", "distribution", "version", "place")
    rows = [
        (kind, each.name, each.distribution or "", each.version or "", each.place)
        for kind, origins in found.items()
        for each in origins
    ]
    if as_json:
        print_json({"plugins": [dict(zip(names, row, strict=True)) for row in rows]})
    elif rows:
        print_table(table(names, rows))
    else:
        print_line("No plug-in is installed. Code may also be named by its place, such as my_package.nets:SmallNet.")


def _row(name: str, setting: Any) -> tuple[str, str, str, str]:
    default = "" if setting.default is MISSING else str(setting.default)
    return name, _told(setting.hint), default, setting.sentence


def _row_of_model(name: str, field: Any) -> tuple[str, str, str, str]:
    limits = {
        key: getattr(rule, key) for rule in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)
    }
    kind = f"{_told(field.annotation)}{f' {Range(**limits)}' if limits else ''}"
    return name, kind, "" if field.default is None else str(field.default), field.description


def _told(hint: Any) -> str:
    """Return a declared type in words, with its rules."""
    if get_origin(hint) is Annotated:
        inner, *rules = get_args(hint)
        return f"{_told(inner)} {' and '.join(getattr(rule, 'shown', None) or str(rule) for rule in rules)}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
