"""The commands of the program under headings, by what people do."""

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

HEADINGS: Mapping[str, tuple[str, ...]] = {
    "Studies": ("run", "validate", "estimate", "list", "show", "compare", "replay", "bundle"),
    "Models": ("export", "verify", "predict", "push", "inspect"),
    "Clusters and tracking": ("submit", "sync"),
    "Installation": ("doctor", "data", "plugins", "db"),
    "Service": ("serve", "token", "person", "team", "delete", "restore", "purge", "audit"),
}


class CommandsByHeading(TyperGroup):
    """A group that lists its commands under `HEADINGS`, in their order, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; called by Click for ``--help``."""
        widest = max(map(len, self.commands))
        for heading, names in HEADINGS.items():
            with formatter.section(heading):
                rows = [(name.ljust(widest), _first_sentence(self.commands[name].help or "")) for name in names]
                formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    """Return the first sentence of a help text in one line, without its full stop."""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")
