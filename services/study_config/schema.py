"""The study file: YAML that names a question, its contestants and their budget; read, checked and resolved."""

import hashlib
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nas_blockout.backbones import require_stages
from nas_blockout.data import DataSettings
from nas_blockout.experiment import DERIVATIONS, Experiment, backbone_from_json
from nas_blockout.methods import method_from_json, method_to_json
from nas_blockout.serialization import from_json, near, to_json
from nas_blockout.train import TrainingSettings
from search_spaces import SPACES
from services.renamed_keys import upgraded_study
from services.study_config.robustness_options import Robustness
from services.study_config.search_options import (
    Constraints,
    Pruner,
    Rules,
    Searching,
    Selection,
    Wanted,
    resolve_rules,
)

MAX_FILE_BYTES = 1 << 20
_QUOTED = re.compile("'([^']*)'")
_UNDECIDING = frozenset({"workers", "question", "export"})  # keys that do not decide any result
_IN_ARMS = frozenset({"arms", "backbone", "training", *Wanted.model_fields})  # keys that its arms have, resolved
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class StudyError(ValueError):
    """A study file that cannot be used; the message names the file, the key, the value and the rule."""


class StudyNotFound(LookupError):
    """No study of that name is bundled, and no such file exists."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Match(_Strict):
    """What a contestant must equal in another: its widths are scaled to the other's cost."""

    arm: Name = Field(description="The arm whose cost is matched.")
    quantity: Literal["macs"] = Field("macs", description="What is matched.")


class ArmConfig(Searching):
    """One contestant."""

    extends: Name | None = Field(None, description="Another arm whose entries are taken where this one has none.")
    description: str = Field("", description="What the arm stands for, in a few words.")
    method: dict[str, Any] | None = Field(
        None, description="Name and settings of a method; without a name they change those of `extends`."
    )
    backbone: dict[str, Any] | None = Field(None, description="Settings of the backbone that differ from the study's.")
    training: dict[str, Any] | None = Field(None, description="Settings of the training that differ from the study's.")
    distillation: dict[str, Any] | None = Field(None, description="How Blockout's structure becomes branches.")
    pruning: dict[str, Any] | None = Field(None, description="How the trained dense network becomes a narrower one.")
    confusion: dict[str, Any] | None = Field(None, description="How the dense network's confusions become branches.")
    space: list[str] | None = Field(None, description="Search spaces, applied in turn; none repeats the arm as it is.")
    match: Match | None = Field(None, description="Match the cost of another arm.")


class Budget(_Strict):
    """What every arm may spend; of several limits the one that is reached first ends its search."""

    sample_passes: int | None = Field(
        None, gt=0, description="Images times epochs trained on, search and retraining together."
    )
    seconds: float | None = Field(
        None, gt=0, description="Measured seconds of training, of proposing and of handing structure over."
    )
    trainings: int | None = Field(None, gt=0, description="Search trials and retrainings, failed ones too.")
    tolerance: float = Field(0.02, ge=0, le=1, description="Largest relative difference of spending for a ranking.")

    @field_validator("seconds", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _limited(self) -> "Budget":
        if self.sample_passes is None and self.seconds is None and self.trainings is None:
            raise ValueError("a budget has sample_passes, seconds or trainings, or several of them: the first ends it")
        return self


class Retrain(_Strict):
    """How winners are trained again."""

    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="Seeds, the same for every arm.")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return seeds


class Workers(_Strict):
    """How trials are run."""

    max_concurrent_trials: int = Field(2, ge=1, le=4096, description="Trials that run at the same time.")
    cpus: int = Field(1, ge=1, le=256, description="Threads, and Ray CPUs, of one trial.")
    gpus: float = Field(0.0, ge=0, le=64, description="Ray GPUs of one trial; fractions share one.")
    retries: int = Field(2, ge=0, le=20, description="Further attempts after the process of a trial died.")

    @field_validator("gpus", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class StudyConfig(Wanted):
    """A study: a question, its contestants, their data and their budget."""

    schema_version: Literal[2] = Field(description="Version of this format.")
    name: Name = Field(description="Name of the study and of its folder.")
    question: str = Field("", description="What the study asks, in one sentence.")
    seed: int = Field(0, ge=0, description="Seed of the search.")
    data: dict[str, Any] = Field(default_factory=lambda: {"name": "digits"}, description="Settings of the data.")
    backbone: dict[str, Any] = Field(
        default_factory=lambda: {"name": "convnet"}, description="Settings of the backbone."
    )
    training: dict[str, Any] = Field(default_factory=dict, description="Settings of the training.")
    budget: Budget = Field(description="What every arm may spend.")
    retrain: Retrain = Field(default_factory=Retrain, description="How winners are trained again.")
    robustness: Robustness | None = Field(
        None, description="Corrupted test images on which retrained models are tested too; none if left out."
    )
    workers: Workers = Field(default_factory=Workers, description="How trials are run.")
    export: list[Name] | None = Field(None, description="Arms whose winners are exported at the end; all if left out.")
    arms: dict[Name, ArmConfig] = Field(min_length=1, description="The contestants by name.")

    @model_validator(mode="after")
    def _references(self) -> "StudyConfig":
        for name, arm in self.arms.items():
            for key, other in (("extends", arm.extends), ("match.arm", arm.match.arm if arm.match else None)):
                if other is not None and (other not in self.arms or other == name):
                    raise ValueError(
                        f"arms.{name}.{key}: no other arm {other!r}; {near(other, set(self.arms) - {name})}"
                    )
            if arm.extends is not None and self.arms[arm.extends].extends is not None:
                raise ValueError(f"arms.{name}.extends: {arm.extends!r} itself extends another arm; name that one")
            if arm.match is not None and arm.confusion is not None:
                raise ValueError(f"arms.{name}.match: the cost of branches from confusions cannot be chosen")
            matched = arm.match.arm if arm.match else None  # a chain of matches would have to be waited for twice
            if matched is not None and self.arms[matched].match is not None:
                raise ValueError(f"arms.{name}.match.arm: {matched!r} itself matches another arm; name that one")
        for name in self.export or []:
            if name not in self.arms:
                raise ValueError(f"export: no arm {name!r}; {near(name, self.arms)}")
        return self


@dataclass(frozen=True, slots=True)
class Arm:
    """A contestant, resolved.

    Args:
        name: Its name.
        experiment: Its experiment before anything is searched.
        spaces: Names of its search spaces.
        searcher: Who proposes.
        match: Name of the arm whose MACs its own must equal, or None.
        description: What it stands for.
        rules: When its trials are stopped early, what they may not exceed, and what is wanted.
    """

    name: str
    experiment: Experiment
    spaces: tuple[str, ...]
    searcher: str
    match: str | None
    description: str
    rules: Rules = field(default_factory=Rules)

    def to_json(self) -> dict[str, Any]:
        """Return the arm as plain JSON types."""
        return {
            "experiment": self.experiment.to_json(),
            "space": list(self.spaces),
            "searcher": self.searcher,
            "match": self.match,
            "description": self.description,
            **self.rules.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Study:
    """A study, resolved: every setting has its value and every name is known.

    Args:
        config: The checked file.
        arms: The contestants by name.
        data: What all of them learn from.
    """

    config: StudyConfig
    arms: Mapping[str, Arm]
    data: DataSettings

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.config.name

    def to_json(self) -> dict[str, Any]:
        """Return the resolved study as plain JSON types."""
        config = self.config.model_dump(mode="json", exclude={"data", *_IN_ARMS})
        config["budget"] = {key: value for key, value in config["budget"].items() if value is not None}
        if self.config.robustness is None:  # so that studies without it keep their hash
            del config["robustness"]
        return {**config, "data": to_json(self.data), "arms": {name: arm.to_json() for name, arm in self.arms.items()}}

    @property
    def hash(self) -> str:
        """Name of everything that decides the results: 16 hexadecimal digits; how trials are run does not count."""
        document = {key: value for key, value in self.to_json().items() if key not in _UNDECIDING}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


class _UniqueKeys(yaml.SafeLoader):
    """YAML without tags, anchors' reuse or repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # untyped in PyYAML
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*name) are not allowed, at {event.start_mark}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"the name {key!r} stands twice, at {node.value[position][0].start_mark}")
        return super().construct_mapping(node, deep)


def bundled() -> dict[str, Path]:
    """Return the study files that come with the package, by name."""
    folder = Path(str(resources.files("search_spaces") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(study: str) -> Path:
    """Return the file of a study given as a path or as the name of a bundled one.

    Raises:
        StudyNotFound: There is neither.
    """
    path = Path(study)
    if path.suffix in (".yaml", ".yml") or "/" in study:
        if not path.is_file():
            raise StudyNotFound(f"there is no study file {study}")
        return path
    if study not in bundled():
        raise StudyNotFound(f"there is no bundled study {study!r}; {near(study, bundled())}")
    return bundled()[study]


def read(path: Path) -> StudyConfig:
    """Read and check a study file.

    Raises:
        StudyError: It is too large, no YAML, or breaks a rule.
    """
    return parse(read_document(path), source=str(path))


def read_document(path: Path) -> dict[str, Any]:
    """Read a study file as plain values, unchecked; one of version 1 is upgraded.

    Raises:
        StudyError: It is too large, no YAML, or no mapping.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise StudyError(f"{path}: a study file has at most {MAX_FILE_BYTES} bytes, this one {path.stat().st_size}")
    try:
        document = yaml_value(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: a study file is UTF-8 text ({error})") from None
    except RecursionError:
        raise StudyError(f"{path}: the file is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"{path}: no valid YAML: {_one_line(str(error))}") from None
    if not isinstance(document, dict):
        raise StudyError(f"{path}: a study is a mapping of keys, got {type(document).__name__}")
    return upgraded_study(document)


def yaml_value(text: str) -> Any:
    """Read YAML without tags, aliases or repeated keys."""
    return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  # a SafeLoader


def parse(document: Mapping[str, Any], *, source: str) -> StudyConfig:
    """Check a study given as plain values.

    Raises:
        StudyError: A rule is broken.
    """
    try:
        return StudyConfig.model_validate(upgraded_study(document))
    except ValidationError as error:
        raise StudyError(f"{source}: {_explain(error)}") from None


def resolve(config: StudyConfig, *, source: str) -> Study:
    """Give every setting its value and check every name.

    Raises:
        StudyError: A setting, method, backbone, data set or space is unknown or refused.
    """
    where = "data"
    try:
        data = from_json(DataSettings, config.data, where="data")
        arms = {}
        for where in config.arms:
            arms[where] = _resolve_arm(config, where, data)
    except ValueError as error:
        place = "" if where == "data" else f"arms.{where}."
        raise StudyError(f"{source}: {place}{error}") from None
    return Study(config, arms, data)


def study_of(document: Mapping[str, Any], *, source: str) -> Study:
    """Check and resolve a study given as plain values; one that is resolved already is read as it is.

    Raises:
        StudyError: A rule is broken.
    """
    if not is_resolved(document):
        return resolve(parse(document, source=source), source=source)
    try:
        return parse_resolved(document)
    except ValidationError as error:
        raise StudyError(f"{source}: {_explain(error)}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(
            f"{source}: no resolved study, as `study.yaml` in the folder of a study is: {_one_line(repr(error))}"
        ) from None


def is_resolved(document: Mapping[str, Any]) -> bool:
    """Whether a document is what `Study.to_json` gives, and no study file as people write it."""
    arms = document.get("arms")
    return isinstance(arms, Mapping) and any(isinstance(arm, Mapping) and "experiment" in arm for arm in arms.values())


def parse_resolved(document: Mapping[str, Any]) -> Study:
    """Read back a study from its resolved form, as the store and ``study.yaml`` of its folder hold it.

    Args:
        document: What `Study.to_json` gave, in this version or in version 1.
    """
    document = upgraded_study(document)
    arms = {
        name: Arm(
            name,
            Experiment.from_json(arm["experiment"]),
            tuple(arm["space"]),
            arm["searcher"],
            arm["match"],
            arm["description"],
            Rules.from_json(arm),
        )
        for name, arm in document["arms"].items()
    }
    bare = {name: {"description": arm.description} for name, arm in arms.items()}
    config = StudyConfig.model_validate({**document, "arms": bare})
    return Study(config, arms, from_json(DataSettings, document["data"], where="data"))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, for editors."""
    return StudyConfig.model_json_schema()


def _resolve_arm(config: StudyConfig, name: str, data: DataSettings) -> Arm:
    own = config.arms[name]
    other = config.arms[own.extends] if own.extends else ArmConfig()
    spaces = own.space if own.space is not None else other.space or []
    for space in spaces:
        if space not in SPACES:
            raise ValueError(f"space: no such search space {space!r}; {near(space, SPACES)}")
    experiment = Experiment(
        data=data,
        backbone=backbone_from_json(_backbone(config.backbone, other.backbone, own.backbone)),
        method=method_from_json(_method(own, other)),
        training=from_json(
            TrainingSettings, {**config.training, **(other.training or {}), **(own.training or {})}, where="training"
        ),
        **{name: _derivation(name, kind, own, other) for name, kind in DERIVATIONS.items()},
    )
    match = own.match or other.match
    for wanted, given in (("the space 'branched'", "branched" in spaces), ("match", match is not None)):
        if given:
            require_stages(experiment.backbone, wanted)
    searcher, rules = resolve_rules(own, other, config, epochs=experiment.training.epochs)
    return Arm(name, experiment, tuple(spaces), searcher, match.arm if match else None, own.description, rules)


def _backbone(*documents: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge settings, the later over the earlier; another backbone starts anew."""
    merged: dict[str, Any] = {}
    for document in documents:
        if document is not None:
            same = document.get("name", merged.get("name")) == merged.get("name")
            merged = {**merged, **document} if same else dict(document)
    return merged


def _method(own: ArmConfig, other: ArmConfig) -> dict[str, Any]:
    """Return the method of an arm; settings without a name change those of the arm that it extends."""
    if own.method is not None and other.method is not None and "name" not in own.method:
        return {**other.method, **own.method}
    return own.method or other.method or {"name": "none"}


def _derivation(name: str, kind: type, own: ArmConfig, other: ArmConfig) -> Any:
    """Return the settings of one kind of handover, or None if neither the arm nor the one that it extends has it."""
    given = [document for document in (getattr(other, name), getattr(own, name)) if document is not None]
    merged = {key: value for document in given for key, value in document.items()}
    return from_json(kind, merged, where=name) if given else None


def _explain(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])  # a misspelt key tells most
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"{key}: no such key; {near(str(first['loc'][-1]), _fields_at(first['loc']))}"
    if first["type"] == "missing":
        return f"{key}: this key is required"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] == "value_error" and not key else f", got {_short(first['input'])}"
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        value += f"; {near(first['input'], re.findall(_QUOTED, first['ctx']['expected']))}"
    return f"{key}: {message}{value}" if key else message


def _fields_at(location: tuple[int | str, ...]) -> Mapping[str, Any]:
    parts: dict[str, type[BaseModel]] = {
        "budget": Budget,
        "retrain": Retrain,
        "robustness": Robustness,
        "workers": Workers,
        "match": Match,
        "pruner": Pruner,
        "constraints": Constraints,
        "selection": Selection,
    }
    parents = [str(part) for part in location[:-1]]
    whole = ArmConfig if parents[:1] == ["arms"] else StudyConfig
    return parts.get(parents[-1] if parents else "", whole).model_fields


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def method_name(arm: Arm) -> str:
    """Return the registered name of an arm's method."""
    return str(method_to_json(arm.experiment.method)["name"])
