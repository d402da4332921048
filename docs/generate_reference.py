"""Write the pages of docs/reference from the code. `make docs` runs this; `make check` fails when a page is stale.

Usage: python docs/generate_reference.py [--check]
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from nas_blockout.backbones import BACKBONES
from nas_blockout.data import DataSettings
from nas_blockout.experiment import DERIVATIONS
from nas_blockout.methods import METHODS, Preset
from nas_blockout.serialization import to_json
from nas_blockout.settings_fields import Range
from nas_blockout.training import TrainingSettings
from search_spaces import SPACES
from services import api, settings
from services.analysis.comparison import ComparisonDocument
from services.api import schemas as api_models
from services.budget.limits import WORDS, limits
from services.cli import main as cli
from services.renamed_keys import RENAMED, RENAMED_VALUES
from services.study_config import resolution, search_options, settings_models, yaml_reader
from services.study_config import schema as study_file
from services.study_config.searching import pruners, searchers, warm_starts

REFERENCE = Path(__file__).parent / "reference"
GENERATED = "<!-- Written by docs/generate_reference.py from the code: do not edit; run `make docs`. -->\n"
WHERE_RENAMED = {  # by kind of mapping in `services.renamed_keys`: where its keys stand
    "study": "study file, top level",
    "arm": "study file, `arms.<name>`",
    "selection": "study file, `selection`",
    "workers": "study file, `workers`",
    "backbone": "study file, `backbone`",
    "method": "study file, `method`",
    "derivation": "study file, `distillation`, `pruning`, `confusion`",
    "params": "store, what a search recorded with a trial",
    "searched": "store and `trials.csv`, names of searched parameters",
    "compared arm": "`comparison.json`, `arms.<name>`",
    "compared cost": "`comparison.json`, `arms.<name>.cost`",
}
PLAIN = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
EXIT_CODES = (
    "| 0 | success |",
    "| 1 | failed |",
    "| 2 | usage error, an invalid study file, or the extra `services` is not installed |",
    "| 3 | not found |",
    "| 4 | the study has finished, but some trials failed; `predict` has answered, but some files could not be read |",
    "| 5 | a service is unreachable |",
    "| 6 | a model failed verification |",
    "| 130, 143 | interrupted, terminated; run the same command again to resume |",
    "| 141 | nobody reads the output any more, as after `\\| head` |",
)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars inside cells are escaped and line breaks become spaces."""
    header = list(header)
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def markdown(docstring: str | None) -> str:
    """The prose of a docstring up to its sections, with single backticks."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    sections = ("Args:", "Returns:", "Raises:", "References:", "Yields:")
    prose = lines[: next((index for index, line in enumerate(lines) if line in sections), len(lines))]
    return "\n".join(prose).strip().replace("``", "`")


def schema_table(schema: dict[str, Any], *, first: Iterable[str] = ()) -> str:
    """The keys of an object in a JSON Schema: name, type, range, default, description; some of them first."""
    properties, required, own = schema.get("properties", {}), schema.get("required", ()), set(first)
    rows = []
    for name in sorted(properties, key=lambda name: bool(own) and name not in own):
        key = properties[name]
        default = "required" if name in required else f"`{_yaml(key.get('default', {}))}`"
        rows.append((f"`{name}`", _type(key), _range(key), default, key.get("description", "")))
    return table(("key", "type", "range", "default", "is"), rows) if rows else "It has no settings.\n"


def model_table(model: type[BaseModel]) -> str:
    """The keys of a pydantic model, inherited ones last."""
    return schema_table(_with_defaults(model), first=model.__annotations__)


def _with_defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model with what it leaves out: defaults that are made by a function, and repetitions."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        schema["properties"][name].setdefault("description", field.description)
        if not field.is_required() and "default" not in schema["properties"][name]:
            schema["properties"][name]["default"] = field.get_default(call_default_factory=True)
    return schema


def _type(key: dict[str, Any]) -> str:
    """The type of a key as the writer of a study file meets it."""
    if "anyOf" in key or "oneOf" in key:
        return " or ".join(dict.fromkeys(_type(each) for each in key.get("anyOf", key.get("oneOf"))))
    if "enum" in key or "const" in key:
        return " or ".join(_yaml(each) for each in key.get("enum", [key.get("const")]))
    if key.get("type") == "array":
        return f"list of {_type(key['items'])}"
    if "examples" in key:
        return f"text such as {_yaml(key['examples'][0])}"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    return words.get(key.get("type", ""), "mapping")


def _range(key: dict[str, Any]) -> str:
    """The range of a number, or of each number of a list."""
    if "anyOf" in key:
        return " or ".join(filter(None, map(_range, key["anyOf"])))
    if key.get("type") == "array":
        items = _range(key["items"])
        least = f"{key['minItems']} or more" if "minItems" in key else ""
        return ", ".join(filter(None, (least, f"each {items}" if items else "")))
    limits = (key.get(name) for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"))
    ge, gt, le, lt = limits
    return "" if {ge, gt, le, lt} == {None} else str(Range(ge=ge, gt=gt, le=le, lt=lt))


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and value else json.dumps(value)


def study_file_page() -> str:
    """The keys of a study file and the settings below them."""
    parts = [
        "# Study file\n",
        "A study is a YAML file. Keys that are not listed here are errors. All errors of a file are reported at once, "
        "with line, key, value, rule and the nearest known key. `nas-blockout validate STUDY` prints a study with all "
        "defaults filled in.\n",
        "Editors complete and check all keys with [study-file.schema.json](study-file.schema.json), which "
        "`nas-blockout validate --schema` also prints: start the file with the comment "
        "`# yaml-language-server: $schema=study-file.schema.json`.\n",
        "The sections of an arm are partial. What an arm leaves out comes from the arm in `extends`, then from the "
        "study, then from the preset of its method, then from the defaults below. A relative `data.folder` is relative "
        "to the study file.\n",
        "Files of version 1 still work. `nas-blockout validate --upgrade FILE` prints one in version 2 and keeps its "
        "comments; `--write` replaces the file.\n",
    ]
    parts += [f"## Top level\n\n{model_table(study_file.StudyConfig)}"]
    for key, model in (
        ("arms.<name>", study_file.ArmConfig),
        ("arms.<name>.match", study_file.Match),
        ("arms.<name>.searcher", searchers.SearcherOptions),
        ("arms.<name>.pruner", pruners.Pruner),
        ("arms.<name>.warm_start", warm_starts.WarmStart),
        ("constraints", search_options.Constraints),
        ("selection", search_options.Selection),
        ("budget", study_file.Budget),
        ("retrain", study_file.Retrain),
        ("robustness", study_file.Robustness),
        ("workers", study_file.Workers),
    ):
        parts.append(f"## `{key}`\n\n{model_table(model)}")
    parts += [settings_section("data", DataSettings), settings_section("training", TrainingSettings)]
    parts += [settings_section("backbone", backbone.settings, name) for name, backbone in BACKBONES.items()]
    parts += [settings_section("method", method.settings, name) for name, method in METHODS.items()]
    parts += [settings_section(name, settings) for name, settings in DERIVATIONS.items()]
    return "\n".join(parts)


def settings_section(section: str, kind: type, name: str | None = None) -> str:
    """A section for the settings of one dataclass; of a method or a backbone with its name, and with its presets."""
    title = section if name is None else f"{section}: {{name: {name}}}"
    keys = schema_table(settings_models.model(section, name).model_json_schema())
    presets = METHODS[name].presets if section == "method" and name is not None else {}
    return "\n\n".join(filter(None, (f"## `{title}`", markdown(kind.__doc__), keys + preset_table(presets))))


def preset_table(presets: Mapping[str, Preset]) -> str:
    """The values in which the presets of a method differ."""
    if not presets:
        return ""
    values = {
        name: {
            **to_json(preset.settings),
            **{f"backbone.{key}": value for key, value in preset.backbone.items()},
            **{f"distillation.{key}": value for key, value in preset.distillation.items()},
        }
        for name, preset in presets.items()
    }
    keys = list(dict.fromkeys(key for each in values.values() for key in each))
    rows = [
        (f"`{key}`", *(f"`{_yaml(each[key])}`" if key in each else "as it is" for each in values.values()))
        for key in keys
        if len({_yaml(each.get(key)) for each in values.values()}) > 1
    ]
    return "\n" + table(("default under the preset", *(f"`{name}`" for name in presets)), rows)


def spaces_page() -> str:
    """The search spaces with what their functions say."""
    parts = ["# Search spaces\n\nNames for `arms.<name>.space`. Several are applied in turn.\n"]
    return "\n".join(parts + [f"## `{name}`\n\n{markdown(space.__doc__)}\n" for name, space in SPACES.items()])


def studies_page() -> str:
    """The bundled studies with their questions, budgets and arms."""
    parts = ["# Bundled studies\n\nRun one with `nas-blockout run <name>`; copy one to write your own.\n"]
    for name, path in yaml_reader.bundled().items():
        config = resolution.read(path)
        budget = ", ".join(f"{limit:,g} {WORDS[unit]}" for unit, limit in limits(config.budget).items())
        limited = f"Data: `{config.data['name']}`. Budget: {budget} an arm. "
        seeds = f"Retraining seeds: {', '.join(map(str, config.retrain.seeds))}."
        rows = [(f"`{arm}`", entry.description) for arm, entry in config.arms.items()]
        parts.append(f"## `{name}`\n\n{config.question}\n\n{limited}{seeds}\n\n{table(('arm', 'stands for'), rows)}")
    return "\n".join(parts)


def commands(group: Any = None, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command of the command line, subcommands of groups included."""
    group = typer.main.get_command(cli.app) if group is None else group
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        words = (*prefix, name)
        found += commands(command, words) if hasattr(command, "commands") else [words]
    return found


def cli_page() -> str:
    """Every command with the help it prints."""
    parts = ["# Command line\n", "| exit code | means |\n| --- | --- |", *EXIT_CODES, ""]
    for words in commands():
        result = CliRunner().invoke(cli.app, [*words, "--help"], prog_name="nas-blockout", env=PLAIN, color=False)
        if result.exit_code != 0:
            raise RuntimeError(f"nas-blockout {' '.join(words)} --help failed: {result.output}")
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## `nas-blockout {' '.join(words)}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def settings_page() -> str:
    """The environment variables that the services read."""
    intro = (
        "# Settings\n\nRead from the environment when a command starts. Unknown `NAS_BLOCKOUT_*` names are refused.\n"
        "Each can be given as a file: `NAS_BLOCKOUT_STORE_URL_FILE` names one that holds `NAS_BLOCKOUT_STORE_URL`.\n"
    )
    rows = [(f"`{variable.name}`", variable.description, variable.default) for variable in settings.variables()]
    return intro + "\n" + table(("variable", "is", "where it is not set"), rows)


def api_page() -> str:
    """Every route of the HTTP API, and every shape it answers with, from its OpenAPI description."""
    described = api.description()
    parts = [
        "# HTTP API\n",
        "`/openapi.json` of a running service says the same for programs; [the guide](../guides/service.md) has "
        "examples. Every request under `/v1` needs `Authorization: Bearer TOKEN`; every error is an `ErrorDocument`.\n",
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(_route(method.upper(), path, operation))
    shapes = described["components"]["schemas"]
    answered = [name for name, shape in shapes.items() if _is_answered(name, shape)]
    parts += [f"## `{name}`\n\n{_shape(shapes[name])}" for name in sorted(answered)]
    return "\n".join(parts)


def _is_answered(name: str, shape: dict[str, Any]) -> bool:
    """Whether a shape is one of the API's own; those of study files have a page of their own."""
    return "properties" in shape and hasattr(api_models, name)


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        (f"`{each['name']}`", each["in"], _json_type(each["schema"]), each.get("description", ""))
        for each in operation.get("parameters", [])
        if each["in"] != "path"
    ]
    taken = [
        f"Takes {', '.join(f'`{kind}`' for kind in body['content'])}."
        for body in [operation.get("requestBody")]
        if body
    ]
    answers = {status: _content(answer) for status, answer in sorted(operation["responses"].items())}
    given = [f"`{status}` {content}".rstrip() for status, content in answers.items() if content != "`ErrorDocument`"]
    refused = [f"`{status}`" for status, content in answers.items() if content == "`ErrorDocument`"]
    given += [f"and `ErrorDocument` with {', '.join(refused)}"] if refused else []
    text = " ".join([operation.get("description", "").strip(), *taken, f"Answers {', '.join(given)}."])
    asked = "\n" + table(("parameter", "in", "type", "is"), rows) if rows else ""
    return f"## `{method} {path}`\n\n{text}\n{asked}"


def _content(answer: dict[str, Any]) -> str:
    return ", ".join(
        f"`{_json_type(media['schema'])}`" if kind == "application/json" and media.get("schema") else kind
        for kind, media in answer.get("content", {}).items()
    )


def _shape(shape: dict[str, Any]) -> str:
    rows = [(f"`{name}`", _json_type(each), each.get("description", "")) for name, each in shape["properties"].items()]
    return f"{shape.get('description', '')}\n\n{table(('key', 'type', 'is'), rows)}"


def _json_type(schema: dict[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_json_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_json_type(schema['items'])}" if "items" in schema else "list"
    return {"string": "text", "object": "mapping"}.get(schema.get("type", ""), schema.get("type", "anything"))


def comparison_page() -> str:
    """Every key of comparison.json, by the part of the document it belongs to."""
    schema = ComparisonDocument.model_json_schema(mode="serialization")
    parts = schema.pop("$defs")
    intro = (
        "# comparison.json\n\nThe result of a study, in its folder and from `GET /v1/studies/{name}/comparison`. "
        "[Reading the report](../guides/reading-the-report.md) explains it. Shares and accuracies lie in [0, 1].\n"
    )
    sections = [f"## {name}\n\n{_part(part)}" for name, part in sorted(parts.items())]
    return "\n".join([intro, _part(schema), *sections])


def _part(part: dict[str, Any]) -> str:
    """A part of a document; what its docstring says of an argument is said of the key."""
    text = inspect.cleandoc(part.get("description", ""))
    told = dict(re.findall(r"^    (\w+): (.+?)(?=\n    \w+: |\n\S|\Z)", text.partition("Args:")[2], re.M | re.S))
    keys = {key: {"description": told.get(key, ""), **each} for key, each in part["properties"].items()}
    return _shape({**part, "description": markdown(text), "properties": keys})


def renamed_keys_page() -> str:
    """Every key and value that has another name in version 2, from the one table that reads version 1."""
    intro = (
        "# Renamed keys\n\nFrom version 1 to version 2. Version 1 is still read everywhere; [the guide](../guides/"
        "upgrading.md) says how to upgrade.\n"
    )
    keys = [
        (WHERE_RENAMED[kind], f"`{old}`", f"`{new}`") for kind, names in RENAMED.items() for old, new in names.items()
    ]
    values = [
        (f"{WHERE_RENAMED[kind]}, value of `{key}`", f"`{old}`", f"`{new}`")
        for (kind, key), names in RENAMED_VALUES.items()
        for old, new in names.items()
    ]
    return intro + "\n" + table(("where", "version 1", "version 2"), keys + values)


PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli.md": cli_page,
    "comparison.md": comparison_page,
    "renamed-keys.md": renamed_keys_page,
    "settings.md": settings_page,
    "study-file.md": study_file_page,
    "spaces.md": spaces_page,
    "studies.md": studies_page,
}


def fresh() -> dict[str, str]:
    """All pages as the code says they must be, by name."""
    pages = {name: GENERATED + page() for name, page in PAGES.items()}
    return {**pages, "study-file.schema.json": json.dumps(study_file.json_schema(), indent=1) + "\n"}


def stale(folder: Path = REFERENCE) -> list[str]:
    """Names of the pages in `folder` that differ from what the code says, missing ones among them."""
    return [
        name
        for name, text in fresh().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the pages, or with `--check` only tell which are stale."""
    if sys.argv[1:] == ["--check"]:
        names = stale()
        print("\n".join(f"docs/reference/{name} is stale: run make docs" for name in names), end="\n" if names else "")
        return 1 if names else 0
    REFERENCE.mkdir(exist_ok=True)
    for name, text in fresh().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
