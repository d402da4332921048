"""One kind of choice in a study, such as its backbone: the built-in ones, and plug-ins, found when they are named."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Generic, TypeVar

from nas_blockout.plugins.installed import Origin, installed, origin_of_place
from nas_blockout.plugins.named_code import FORM, load_named
from nas_blockout.serialization import near
from nas_blockout.settings_fields import Conflict, conflicts_in, declared

Entry = TypeVar("Entry")
Allows = Callable[[Origin], bool]
_ALLOWS: ContextVar[Allows | None] = ContextVar("allowed_plugins", default=None)


@contextmanager
def allowing(allows: Allows) -> Iterator[None]:
    """Refuse to import plug-ins in this context, but those of which a function says that they are allowed.

    Args:
        allows: Whether a plug-in may be imported.
    """
    token = _ALLOWS.set(allows)
    try:
        yield
    finally:
        _ALLOWS.reset(token)


class NotAllowed(Conflict):
    """A plug-in was named where `allowing` refuses it; it was not imported."""


class Choices(Generic[Entry]):
    """The choices of one kind by name.

    Args:
        kind: What one of them is called: a key of `nas_blockout.plugins.installed.GROUPS`.
        built_in: The built-in ones by name, which are always those that are found.
        read: Returns the choice that an imported object stands for, given its origin, or raises a ValueError that says
            what it must be.
        settings_of: Returns the dataclass of a choice's settings; None for choices without any.
        key: Setting of an experiment that has the name, for errors.
    """

    def __init__(
        self,
        kind: str,
        built_in: Mapping[str, Entry],
        read: Callable[[Any, Origin], Entry],
        *,
        settings_of: Callable[[Entry], type] | None = None,
        key: str,
    ) -> None:
        self.kind = kind
        self.built_in = built_in
        self.key = key
        self._read, self._settings_of = read, settings_of
        self._loaded: dict[str, tuple[Any, Entry, Origin]] = {}  # by name in studies, with the object that was imported
        self._names: dict[type, str] = (
            {settings_of(entry): name for name, entry in built_in.items()} if settings_of is not None else {}
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of the built-in choices and of the plug-ins that are installed; nothing is imported."""
        others = {each.name for each in installed(self.kind)} - set(self.built_in)
        return (*self.built_in, *sorted(others))

    def is_known(self, name: Any) -> bool:
        """Return whether there is a choice of a name, as far as that is known without an import."""
        if not isinstance(name, str):
            return False
        known = name in self.built_in or re.fullmatch(FORM, name) is not None
        return known or any(each.name == name for each in installed(self.kind))

    def named(self, name: Any) -> Entry:
        """Return the choice of a name; a plug-in is imported.

        Raises:
            Conflict: There is none of that name, several distributions have one, its import is refused or fails, or
                what is imported is no choice of this kind; the message names the plug-in and says why.
        """
        if isinstance(name, str) and name in self.built_in:
            return self.built_in[name]
        origin = self.origin(name)
        assert origin is not None, "it is not built-in"
        return self._imported(origin)

    def origin(self, name: Any) -> Origin | None:
        """Return where the choice of a name is from; None for a built-in one. Nothing is imported.

        Raises:
            Conflict: There is none of that name, or several distributions have one.
        """
        if isinstance(name, str) and name in self.built_in:
            return None
        points = installed(self.kind)
        if isinstance(name, str) and re.fullmatch(FORM, name):
            # One plug-in has one name, however it was named: by it trials and hashes of studies know it.
            there = [each for each in points if each.place == name and each.name not in self.built_in]
            alone = [each for each in there if sum(other.name == each.name for other in points) == 1]
            return alone[0] if alone else origin_of_place(name)
        found = [each for each in points if each.name == name]
        if not found:
            raise Conflict(f"{self.key}: no such {self.kind} {name!r}; {near(str(name), self.names())}", self.key)
        if len(found) > 1:
            raise Conflict(
                f"{self.key}: {name!r} is a {self.kind} of several distributions: "
                f"{' and '.join(f'{each.distribution} {each.version} ({each.place})' for each in found)}; name one by "
                f"its place, or uninstall the other",
                self.key,
            )
        return found[0]

    def canonical(self, name: str) -> str:
        """Return the one name of a choice that may be named in two ways, by entry point and by place.

        Raises:
            Conflict: As of `origin`.
        """
        origin = self.origin(name)
        return name if origin is None else origin.name

    def of(self, settings: Any) -> Entry:
        """Return the choice that settings are of.

        Raises:
            ValueError: They are the settings of none that is known.
        """
        name = self.name_of(settings)
        return self.built_in[name] if name in self.built_in else self._loaded[name][1]

    def name_of(self, settings: Any) -> str:
        """Return the name of the choice that settings are of.

        Raises:
            ValueError: They are the settings of none that is known: of no built-in one, and of no plug-in that was
                named in this process.
        """
        name = self._names.get(type(settings))
        if name is None:
            known = ", ".join(kind.__name__ for kind, name in self._names.items() if name in self.built_in)
            raise ValueError(
                f"{self.kind} must be the settings of a registered {self.kind}, one of {known}; got {settings!r}"
            )
        return name

    def _imported(self, origin: Origin) -> Entry:
        allows = _ALLOWS.get()
        if allows is not None and not allows(origin):
            raise NotAllowed(f"{self.key}: the plug-in {origin} is not allowed here, and was not imported", self.key)
        try:
            found = load_named(origin.place, key=self.key)
        except Conflict as error:
            if origin.name == origin.place:
                raise
            text = str(error).removeprefix(f"{self.key}: ")
            raise Conflict(f"{self.key}: the plug-in {origin} cannot be used: {text}", self.key) from error
        known = self._loaded.get(origin.name)
        if known is not None and known[0] is found:
            return known[1]
        try:
            entry = self._read(found, origin)
            self._take(entry, origin)
        except ValueError as error:
            text = "; ".join(str(each) for each in conflicts_in(error))
            raise Conflict(f"{self.key}: the plug-in {origin} cannot be used: {text}", self.key) from error
        self._loaded[origin.name] = (found, entry, origin)
        return entry

    def _take(self, entry: Entry, origin: Origin) -> None:
        """Take note of the settings of a plug-in, by which it is found again.

        Raises:
            ValueError: They are no settings, or those of another choice.
        """
        if self._settings_of is None:
            return
        settings = self._settings_of(entry)
        require_settings(settings)
        other = self._names.get(settings)
        if other is not None and other != origin.name:
            raise ValueError(f"its settings {settings.__name__} are those of the {self.kind} {other}: make it its own")
        self._names[settings] = origin.name


def require_settings(kind: Any) -> None:
    """Refuse what cannot be the settings of a plug-in.

    Args:
        kind: Should be a frozen dataclass whose fields all have defaults and a sentence under ``Args:``.

    Raises:
        ValueError: It is not.
    """
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"its settings must be a dataclass, got {kind!r}")
    if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # every dataclass has them
        raise ValueError(f"its settings {kind.__name__} must be frozen: @dataclass(frozen=True, slots=True)")
    bare = [item.name for item in fields(kind) if item.default is MISSING]
    if bare:
        raise ValueError(f"every setting must have a default, which {', '.join(bare)} of {kind.__name__} have not")
    if "name" in {item.name for item in fields(kind)}:
        raise ValueError(f"no setting may be called name, which is the name of the plug-in, as in {kind.__name__}")
    declared(kind)
