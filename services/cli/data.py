"""``nas-blockout data``: which data sets there are, how they are had, whether they are whole, what they look like."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import (
    FAILED,
    NOT_FOUND,
    USAGE,
    JsonOption,
    fail,
    installation,
    log,
    print_json,
    print_line,
    print_table,
    table,
)

app = typer.Typer(help="List, fetch, check and show data sets.", no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(help="Name of a data set; `nas-blockout data list` has them all.")]
FolderOption = Annotated[
    str | None, typer.Option("--folder", help="Where its files are, for imagefolder and glyphs.", metavar="FOLDER")
]


@app.command("list")
def list_sources(as_json: JsonOption = False) -> None:
    """List the data sets that are known, what they hold and how they are had."""
    from nas_blockout.data import SOURCES

    if as_json:
        print_json(
            {
                "root": str(_root()),
                "sources": [
                    {"name": name, "summary": source.summary, "remedy": source.remedy, "fetch": bool(source.fetch)}
                    for name, source in SOURCES.items()
                ],
            }
        )
        return
    rows = [(name, source.summary, source.remedy) for name, source in SOURCES.items()]
    print_table(table(("name", "holds", "how it is had"), rows))
    print_line(f"downloads go to {_root()}")


@app.command()
def fetch(name: NameArgument, as_json: JsonOption = False) -> None:
    """Download a data set and check it; what is there already is kept."""
    from nas_blockout import data

    root = _root()
    _require_known(name)
    if data.SOURCES[name].fetch is not None:
        log(f"fetching {name} into {root}; this may take some minutes")
    folder = data.fetch(name, root)
    print_json({"name": name, "folder": str(folder)}) if as_json else print_line(f"{name}: {folder}")


@app.command()
def check(name: NameArgument, folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """Read all images of a data set, and say whether it can be trained on."""
    from nas_blockout import data

    _require_usable(name, folder)
    log(f"reading all of {name}")
    report = data.check(name, _root(), folder=folder)
    if as_json:
        print_json(asdict(report))
    elif report.ready:
        channels, height, width = report.shape
        origin = f" in {report.origin}" if report.origin else ""
        print_line(f"{name}: whole{origin}; {report.classes} classes, images of {channels} x {height} x {width}")
        counts, fewest = report.images or {}, report.fewest_in_class or {}
        print_table(
            table(("split", "images", "in the smallest class"), [(key, counts[key], fewest[key]) for key in counts])
        )
    if not report.ready:
        fail(NOT_FOUND if report.missing else FAILED, report.problem)


@app.command()
def show(
    name: NameArgument,
    folder: FolderOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PNG file to write; NAME.png if left out.")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, max=100, help="Images of each class.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Draw training images of every class into a PNG file."""
    from nas_blockout import data

    _require_usable(name, folder)
    path = (output or Path(f"{name}.png")).absolute()
    if not path.parent.is_dir():
        fail(NOT_FOUND, f"there is no folder {path.parent}")
    picture = data.show(name, _root(), folder=folder, columns=columns)
    picture.save(path, format="PNG")
    print_json({"name": name, "file": str(path)}) if as_json else print_line(path)


def _require_known(name: str) -> None:
    from nas_blockout.data import SOURCES
    from nas_blockout.serialization import near

    if name not in SOURCES:
        fail(USAGE, f"there is no data set {name!r}; {near(name, SOURCES)}")


def _require_usable(name: str, folder: str | None) -> None:
    from nas_blockout.data import DataSettings

    _require_known(name)
    try:
        DataSettings(name=name, folder=folder)
    except ValueError as error:
        fail(USAGE, str(error))


def _root() -> Path:
    """Return the folder of downloads."""
    root = installation().data
    assert root is not None
    return root
