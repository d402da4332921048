"""`nas-blockout validate`: check a study file, print it resolved or in the newest version, or print its JSON Schema."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_blockout.atomic_files import write_text
from services.cli import lazy_modules as lazy
from services.cli.console import (
    USAGE,
    JsonOption,
    SetOption,
    fail,
    installation,
    log,
    print_json,
    print_line,
)
from services.cli.help.completion import bundled_studies

if TYPE_CHECKING:
    from nas_blockout.data import Splits
    from services.study_config.overrides import Origin
    from services.study_config.resolved_study import Study

StudyArgument = Annotated[
    str | None,
    typer.Argument(help="A bundled study by name, or the path of a YAML file.", autocompletion=bundled_studies),
]
UpgradeOption = Annotated[bool, typer.Option("--upgrade", help="Print the file in the newest version, with comments.")]
WriteOption = Annotated[bool, typer.Option("--write", help="With --upgrade: write the file instead of printing it.")]
SchemaOption = Annotated[
    bool, typer.Option("--schema", help="Print the JSON Schema of study files, with installed plug-ins, for editors.")
]


def validate(
    study: StudyArgument = None,
    as_json: JsonOption = False,
    assignments: SetOption = None,
    upgrade: UpgradeOption = False,
    write: WriteOption = False,
    schema: SchemaOption = False,
) -> None:
    """Check a study and print it with every setting resolved. Nothing is written without --write.

    All errors of a file are reported at once, each with its line.
    """
    if schema:
        plugins, faults = lazy.settings_models.usable_plugins()
        for fault in faults:
            log(f"warning: left out: {fault}")
        print_json(lazy.schema.json_schema(plugins))
    elif study is None:
        fail(USAGE, "give the study to validate: a bundled study by name, or the path of a YAML file")
    elif upgrade:
        if assignments or as_json:
            fail(USAGE, "--upgrade rewrites the file as it is: give it neither --set nor --json")
        _upgrade(study, write=write)
    elif write:
        fail(USAGE, "--write belongs to --upgrade")
    else:
        _validate(study, as_json=as_json, assignments=assignments or [])


def read_study(study: str, assignments: Sequence[str] = ()) -> tuple["Study", "Origin"]:
    """Return a study with every setting resolved, and where it was read; all of its errors are raised at once.

    Args:
        study: Name of a bundled study, or path of a study file.
        assignments: Keys to change, each as ``key=value``.

    Raises:
        StudyNotFound: There is no such study.
        StudyError: The study violates rules, among which are those that only its data shows.
    """
    settings = installation()
    with lazy.warm_starts.recalling(lazy.earlier_trials.of_home(settings.store_url)):
        return lazy.overrides.read_resolved(
            study, assignments, load=lambda asked: lazy.data.load(asked, root=settings.data)
        )


def _validate(study: str, *, as_json: bool, assignments: list[str]) -> None:
    resolved, origin = read_study(study, assignments)
    splits = lazy.data.load(resolved.data, root=installation().data)
    lazy.validation.check_against_data(resolved, splits, source=origin.source, lines=origin.lines)
    for caution in lazy.validation.cautions(resolved, splits):
        log(caution)
    for line in _layers_told(resolved, splits):
        log(line)
    document = resolved.to_json()
    if as_json:
        print_json(document)
    else:
        print_line(lazy.yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True).rstrip())
        for note in splits.notes:
            log(f"data: {note}")
        log(f"{origin.source}: valid, configuration {resolved.hash}")


def _layers_told(study: "Study", splits: "Splits") -> Iterator[str]:
    """Yield what can be masked in each network that a factory makes, in a few lines; a network is told once."""
    arms: dict[Any, list[str]] = {}
    for name, arm in study.arms.items():
        if lazy.backbones.backbone_of(arm.experiment.backbone).from_factory:
            arms.setdefault(arm.experiment.backbone, []).append(name)
    for backbone, names in arms.items():
        place = f"network of {', '.join(names)}"
        try:
            table = lazy.layer_table.layer_table(backbone, splits.shape, len(splits.class_names))
        except ValueError as error:
            yield f"{place}: it can be trained, but neither masked nor branched: {error}"
        else:
            yield from (f"{place}: {line}" for line in table.summary())


def _upgrade(study: str, *, write: bool) -> None:
    path = lazy.yaml_reader.find(study)
    before = read_study(study)[0]
    text = lazy.yaml_reader.read_text(path)
    upgraded = lazy.upgrade.upgraded_text(text, source=str(path))
    if not write:
        print_line(upgraded.rstrip("\n"))
    elif path in lazy.yaml_reader.bundled().values():
        fail(USAGE, f"{path} comes with the package: copy it, or leave out --write to print it")
    elif upgraded != text:
        write_text(path, upgraded)
    log(f"{path}: {'is in version 2' if upgraded == text else 'upgraded to version 2'}, configuration {before.hash}")
