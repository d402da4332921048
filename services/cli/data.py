"""``nas-blockout data``: list the data sets, download them, check that they are complete, and draw sample images."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_blockout.serialization import from_json, near
from services.cli import lazy_modules as lazy
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

if TYPE_CHECKING:
    from nas_blockout.data import DataSettings, Report

app = typer.Typer(help="List, download, check and preview data sets.", no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(help="Name of a data set; see `nas-blockout data list`.")]
FolderOption = Annotated[
    str | None,
    typer.Option("--folder", help="Folder of the images, or of the fonts of glyphs.", metavar="FOLDER"),
]
TableOption = Annotated[
    str | None,
    typer.Option("--table", help="CSV or Parquet file with a row an image; only for table.", metavar="FILE"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another setting of the data, as in a study file, such as layout=classes; can be repeated.",
    ),
]


@app.command("list", epilog="Example: nas-blockout data list --json")
def list_sources(as_json: JsonOption = False) -> None:
    """List the available data sets, what they contain and how to get them."""
    sources = lazy.data.SOURCES
    if as_json:
        print_json(
            {
                "root": str(_root()),
                "sources": [
                    {"name": name, "summary": source.summary, "remedy": source.remedy, "fetch": bool(source.fetch)}
                    for name, source in sources.items()
                ],
            }
        )
        return
    rows = [(name, source.summary, source.remedy) for name, source in sources.items()]
    print_table(table(("name", "contents", "how to get it"), rows))
    print_line(f"Downloads are saved to {_root()}.")


@app.command(epilog="Example: nas-blockout data fetch fashion_mnist")
def fetch(name: NameArgument, as_json: JsonOption = False) -> None:
    """Download a data set and check it; files that are already present are not downloaded again."""
    root = _root()
    _require_known(name)
    if name in lazy.data.SOURCES and lazy.data.SOURCES[name].fetch is not None:
        log(f"downloading {name} to {root}; this can take several minutes")
    folder = lazy.data.fetch(name, root)
    print_json({"name": name, "folder": str(folder)}) if as_json else print_line(f"{name}: {folder}")


@app.command(epilog="Example: nas-blockout data check imagefolder --folder photos")
def check(
    name: NameArgument,
    folder: FolderOption = None,
    table_file: TableOption = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every image of a data set and report whether it can be used for training.

    For a folder of images it says what was recognized in it, and what was passed over and why. Files that cannot be
    read are named together. Where images have groups, such as patients, it counts those of every class and split; with
    `--set folds=5`, the images of every class and fold.
    """
    settings = _usable(name, {"folder": folder, "table": table_file}, assignments or [])
    log(f"reading all images of {name}")
    report = lazy.data.check(settings, _root())
    if as_json:
        print_json(asdict(report))
    elif report.ready:
        channels, height, width = report.shape
        origin = f" in {report.origin}" if report.origin else ""
        print_line(f"{name}: complete{origin}; {report.classes} classes, {channels} x {height} x {width} images")
        for note in report.notes:
            print_line(note)
        counts, fewest = report.images or {}, report.fewest_in_class or {}
        print_table(
            table(
                ("split", "images", "images in the smallest class"), [(key, counts[key], fewest[key]) for key in counts]
            )
        )
        _print_groups(report)
        _print_folds(report)
    if not report.ready:
        fail(NOT_FOUND if report.missing else FAILED, report.problem)


def _print_groups(report: "Report") -> None:
    """Print the images and the groups of every class and split, where images have groups."""
    images, groups = report.images_of_classes or {}, report.groups_of_classes
    if groups is None:
        return
    splits = [split for split in images if split in groups]
    rows = [
        (name, *(f"{images[split][row]} / {groups[split][row]}" for split in splits))
        for row, name in enumerate(report.class_names)
    ]
    print_line("images / groups of every class:")
    print_table(table(("class", *splits), rows))


def _print_folds(report: "Report") -> None:
    """Print the images of every class and fold, where there are folds."""
    folds = report.images_of_folds
    if folds is None:
        return
    rows = [(name, *(str(fold[row]) for fold in folds)) for row, name in enumerate(report.class_names)]
    print_line("images of every class and fold:")
    total = ("all", *(str(sum(fold)) for fold in folds))
    print_table(table(("class", *(f"fold {number}" for number in range(len(folds)))), [*rows, total]))


@app.command(epilog="Example: nas-blockout data show digits --output digits.png")
def show(
    name: NameArgument,
    folder: FolderOption = None,
    table_file: TableOption = None,
    assignments: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG file to write. [default: NAME.png]")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, max=100, help="Images per class.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Draw training images of every class to a PNG file, each row with the whole name of its class.

    Where no installed font has the characters of a name, its row has a number, and the name is printed.
    """
    settings = _usable(name, {"folder": folder, "table": table_file}, assignments or [])
    path = (output or Path(Path(f"{name}.png").name)).absolute()
    if not path.parent.is_dir():
        fail(NOT_FOUND, f"no such folder: {path.parent}")
    sheet = lazy.data.show(settings, _root(), columns=columns)
    sheet.image.save(path, format="PNG")
    for note in sheet.notes:
        log(note)
    for row in sheet.numbered:
        log(f"row {row + 1}: {sheet.class_names[row]}")
    if sheet.numbered:
        log(
            "no font was found for these names: install one of their script, such as the Noto fonts, to have them drawn"
        )
    if as_json:
        print_json(
            {"name": name, "file": str(path), "class_names": list(sheet.class_names), "notes": list(sheet.notes)}
        )
    else:
        print_line(path)


def _require_known(name: str) -> None:
    if not lazy.data.CHOICES.is_known(name):
        fail(USAGE, f"there is no data set {name!r}; {near(name, lazy.data.CHOICES.names())}")


def _usable(name: str, files: dict[str, str | None], assignments: list[str]) -> "DataSettings":
    """Return the settings; what they refuse is a usage error, before anything is read."""
    _require_known(name)
    document: dict[str, Any] = {"name": name, **{key: value for key, value in files.items() if value is not None}}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or key in document:
            fail(USAGE, f"--set needs KEY=VALUE with a setting of data that is not given yet, got {assignment!r}")
        document[key] = lazy.yaml.safe_load(text)
    try:
        return lazy.data.resolved(from_json(lazy.data.DataSettings, document, where="data"))
    except (ValueError, lazy.yaml.YAMLError) as error:
        fail(USAGE, str(error))


def _root() -> Path:
    """Return the folder that data sets are downloaded to."""
    root = installation().data
    assert root is not None
    return root
