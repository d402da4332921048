"""A study with every setting resolved, in the form in which it is run, stored, compared and hashed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nas_blockout.data import DataSettings
from nas_blockout.experiment import Experiment
from nas_blockout.methods import method_to_json
from nas_blockout.serialization import count_of, from_json, to_json
from search_spaces import Context, compose, space_named
from services.plugin_records import Code, PluginMissing, Records, records_of, require_present
from services.renamed_keys import study_hash, upgraded_experiment, upgraded_study
from services.study_config.errors import StudyError, Violation
from services.study_config.schema import StudyConfig
from services.study_config.search_options import Rules, Wanted

_IN_ARMS = frozenset({"arms", "backbone", "training", *Wanted.model_fields})  # keys that the resolved arms contain


@dataclass(frozen=True, slots=True)
class Arm:
    """A resolved arm.

    Args:
        name: Name of the arm.
        experiment: Experiment before the search.
        spaces: Names of the search spaces.
        searcher: Search algorithm.
        match: Name of the arm whose MACs are matched, or None.
        description: Short description.
        rules: Early stopping, constraints, objectives and selection.
    """

    name: str
    experiment: Experiment
    spaces: tuple[str, ...]
    searcher: str
    match: str | None
    description: str
    rules: Rules = field(default_factory=Rules)

    @property
    def code(self) -> Code:
        """What may be of plug-ins, as `services.plugin_records.used` takes it."""
        pruner = self.rules.pruner
        search = [("searchers", self.searcher), *([("pruners", pruner.name)] if pruner is not None else [])]
        return self.experiment, self.spaces, tuple(search)

    def skipped(self, shape: tuple[int, int, int], classes: int) -> list[str]:
        """Return which trials of an earlier study are not tried, since they are not in its spaces.

        Args:
            shape: Channels, height and width of an image.
            classes: Number of classes.
        """
        if self.rules.beginning is None:
            return []
        space = compose([space_named(name) for name in self.spaces])
        return self.rules.beginning.fitting(space, Context(self.experiment, shape, classes))[1]

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
    """A resolved study: every setting has a value and every name exists.

    Args:
        config: The checked study file.
        arms: The resolved arms by name.
        data: Data of all arms.
        recorded_plugins: What was recorded of its plug-ins when it was resolved; None to record those of now.
    """

    config: StudyConfig
    arms: Mapping[str, Arm]
    data: DataSettings
    recorded_plugins: Records | None = None

    @property
    def plugins(self) -> Records:
        """The plug-ins that its arms use, as of `services.plugin_records.records_of`."""
        if self.recorded_plugins is not None:
            return self.recorded_plugins
        return records_of(arm.code for arm in self.arms.values())

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.config.name

    def position_of(self, seed: int) -> int:
        """Return the position of a seed among those of retrainings: with folds, the fold that it holds out.

        Raises:
            ValueError: No winner is retrained with this seed.
        """
        return self.config.retrain.seeds.index(seed)

    def to_json(self) -> dict[str, Any]:
        """Return the resolved study as plain JSON types."""
        config = self.config.model_dump(mode="json", exclude={"data", *_IN_ARMS})
        config["budget"] = {key: value for key, value in config["budget"].items() if value is not None}
        if self.config.robustness is None:  # studies from before this key existed must keep their hash
            del config["robustness"]
        if self.config.metric == "accuracy":  # likewise
            del config["metric"]
        plugins = {"plugins": self.plugins} if self.plugins else {}  # likewise where there are none
        arms = {name: arm.to_json() for name, arm in self.arms.items()}
        return {**config, **plugins, "data": to_json(self.data), "arms": arms}

    @property
    def hash(self) -> str:
        """Hash of all settings that influence results, 16 hexadecimal digits."""
        return study_hash(self.to_json())


def parse_resolved(document: Mapping[str, Any]) -> Study:
    """Read a study from its resolved form, which the store and ``study.yaml`` in the folder of the study contain.

    Args:
        document: Result of `Study.to_json`, of version 2 or 1.

    Raises:
        StudyError: One of its plug-ins is missing.
    """
    document = upgraded_study(document)
    plugins = document.pop("plugins", {})
    try:
        require_present(document.get("name"), plugins)
    except PluginMissing as error:
        raise StudyError(str(error)) from error
    arms = {
        name: Arm(
            name,
            # It holds every setting that there was: what it lacks came later, perhaps with another default.
            Experiment.from_json(upgraded_experiment(arm["experiment"])),
            tuple(arm["space"]),
            arm["searcher"],
            arm["match"],
            arm["description"],
            Rules.from_json(arm),
        )
        for name, arm in document["arms"].items()
    }
    # The arms are resolved already, so the model of the study file only has to know their names.
    bare = {name: {"description": arm.description} for name, arm in arms.items()}
    config = StudyConfig.model_validate({**document, "arms": bare})
    return Study(config, arms, from_json(DataSettings, document["data"], where="data"), plugins)


def method_name(arm: Arm) -> str:
    """Return the registered name of an arm's method."""
    return str(method_to_json(arm.experiment.method)["name"])


def repeated_folds(data: DataSettings, seeds: int) -> Iterator[Violation]:
    """Yield that retrainings have more seeds than there are folds for them to hold out."""
    if data.folds is not None and seeds > data.folds:
        rule = (
            f"must be at most {data.folds}, the folds of the data: each seed holds out another fold, and trainings on "
            "the same images are no further evidence of how accuracy varies with them"
        )
        yield Violation(("retrain", "seeds"), rule, count_of(seeds, "seed"), "leave seeds out for one of each fold")


def folds_left_out(study: Study) -> Iterator[str]:
    """Yield that some folds are held out by no retraining, since there are fewer seeds."""
    seeds, folds = len(study.config.retrain.seeds), study.data.folds or 0
    if seeds < folds:
        held_out = "fold 0 is" if seeds == 1 else f"folds 0 to {seeds - 1} are"
        yield f"{count_of(seeds, 'seed')} for {folds} folds: only {held_out} held out by a retraining"
