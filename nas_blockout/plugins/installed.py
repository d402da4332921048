"""Which plug-ins are installed: entry points of all distributions, read from their metadata without importing any."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, packages_distributions, version
from types import MappingProxyType

from nas_blockout.plugins.named_code import file_of

# By the word for one of them: the group of entry points.
GROUPS = MappingProxyType(
    {
        "backbone": "nas_blockout.backbones",
        "method": "nas_blockout.methods",
        "space": "nas_blockout.spaces",
        "source": "nas_blockout.data_sources",
        "searcher": "nas_blockout.searchers",
        "pruner": "nas_blockout.pruners",
        "loss": "nas_blockout.losses",
        "augmentation": "nas_blockout.augmentations",
    }
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a plug-in is from.

    Args:
        name: Its name in studies: that of its entry point, else the place of its code.
        place: ``package.module:name`` or ``path/to/file.py:name``.
        distribution: Name of the distribution that has it; None if there is none, as for a file.
        version: Version of that distribution, or None.
    """

    name: str
    place: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        """The plug-in in words, such as ``small_net of my-nets 1.0 (my_nets.nets:SMALL)``."""
        owner = f" of {self.distribution} {self.version}" if self.distribution else ""
        return f"{self.name}{owner}{'' if self.name == self.place else f' ({self.place})'}"


def installed(kind: str) -> tuple[Origin, ...]:
    """Return the plug-ins of a kind that installed packages declare, by name; nothing is imported.

    Args:
        kind: A key of `GROUPS`.

    Returns:
        One for each distribution and name: two distributions may declare the same name.
    """
    return tuple(sorted({_origin(each) for each in entry_points(group=GROUPS[kind])}, key=str))


def origin_of_place(place: str) -> Origin:
    """Return the origin of code that is named by its place; its distribution is the one that has its package.

    Args:
        place: ``package.module:name`` or ``path/to/file.py:name``.
    """
    if file_of(place) is not None:
        return Origin(place, place)
    package = place.partition(":")[0].partition(".")[0]
    owners: Sequence[str] = packages_distributions().get(package, ())
    if len(set(owners)) != 1:  # none, as beside the study; or several, as of a namespace
        return Origin(place, place)
    try:
        return Origin(place, place, owners[0], version(owners[0]))
    except PackageNotFoundError:
        return Origin(place, place)


def _origin(point: EntryPoint) -> Origin:
    owner = point.dist
    place = f"{point.module}:{point.attr}" if point.attr else point.module
    return Origin(point.name, place, owner.name if owner else None, owner.version if owner else None)
