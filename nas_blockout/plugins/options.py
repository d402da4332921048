"""Plug-ins that are named by a single setting, with their own settings in another: whether they exist, and these."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from nas_blockout.plugins.installed import installed
from nas_blockout.plugins.named_code import FORM
from nas_blockout.serialization import closest, from_json
from nas_blockout.settings_fields import Conflict, Pattern, PlainMapping, conflicts_in

# Whether there is a plug-in of a name is a rule of its own, so that whoever misspells a name hears of a near one.
PLUGIN_NAME = Pattern(rf"({FORM}|[A-Za-z_][A-Za-z0-9_.-]*)", "the name of a plug-in", "my_package.module:NAME")


def misnamed(
    kind: str, built_in: Collection[str], name: str, options: PlainMapping, *, key: str, options_key: str
) -> Iterator[Conflict]:
    """Yield why a name is none of a choice, or why it may not have options. Nothing is imported.

    Args:
        kind: A key of `nas_blockout.plugins.installed.GROUPS`.
        built_in: Names of the choices that are built in, which have no options.
        name: The name.
        options: Settings of the plug-in.
        key: Setting that has the name.
        options_key: Setting that has the options.
    """
    if name in built_in:
        if len(options):
            message = f"{options_key} are the settings of a plug-in, got {options.to_json()} for {name}"
            yield Conflict(message, options_key, key)
    elif not re.fullmatch(FORM, name):
        known = dict.fromkeys((*built_in, *sorted(each.name for each in installed(kind))))
        if name not in known:
            meant = closest(name, known)
            hint = f"; did you mean {meant!r}?" if meant else ""
            yield Conflict(f"{key} must be one of {', '.join(known)}, got {name!r}{hint}", key)


def settings_from(kind: type, options: Mapping[str, Any], *, where: str) -> Any:
    """Return the settings of a plug-in.

    Args:
        kind: Their dataclass.
        options: What is set of them; the others have their defaults.
        where: Setting that has the options, with its section, such as ``training.loss_options``.

    Raises:
        Conflict: There is no such setting, or its value is refused.
    """
    try:
        return from_json(kind, options, where=where)
    except Conflict as error:  # of one option; with the setting that has all of them, which may be left out
        raise Conflict.of(Conflict(str(each), *each.keys, where) for each in conflicts_in(error)) from None
    except ValueError as error:  # such as an option that there is not
        raise Conflict(str(error), where) from None
