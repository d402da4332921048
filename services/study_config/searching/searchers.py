"""The search algorithms by name, and which settings each of them has."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError

from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.named_code import told
from nas_blockout.serialization import from_json
from nas_blockout.settings_fields import Conflict, conflicts_in
from services.search_plugins import SEARCHER_CHOICES, SEARCHERS, algorithm_named
from services.study_config import settings_models

GRID_POINTS = 3
STARTUP_TRIALS = 4
POPULATION = 20
TOURNAMENT = 5
LEAST_OF_CMAES = 4  # the best half must be two or more to have a covariance


class SearcherSettings(BaseModel):
    """Settings of search algorithms; each has some of them, and None is the default of the algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    multivariate: bool | None = Field(
        None,
        description="Of tpe: whether parameters that all trials share are proposed together; true with one objective "
        "if left out.",
    )
    population_size: int | None = Field(
        None,
        ge=2,
        le=1000,
        description=f"Of nsga2 and nsga3: trials of a generation; of evolution: the latest trials, among which parents "
        f"are; {POPULATION} if left out. Of cmaes: trials of a generation; 4 + 3 ln(numbers searched) if left out.",
    )
    tournament_size: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=f"Of evolution: draws from the population, of which the best is the parent; {TOURNAMENT} if left "
        "out.",
    )
    mutation_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Of nsga2 and nsga3: probability that a parameter is drawn anew; 1 / parameters if left out.",
    )
    margin: bool | None = Field(
        None,
        description="Of cmaes: whether whole numbers keep a least probability to change (CMA-ES with margin); false if "
        "left out.",
    )
    sequence: Literal["sobol", "halton"] | None = Field(
        None, description="Of qmc: which low-discrepancy sequence; sobol if left out."
    )

    @property
    def given(self) -> dict[str, Any]:
        """The settings that differ from the defaults, by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class SearcherOptions(SearcherSettings):
    """A search algorithm with settings."""

    name: str = Field(description="Search algorithm.", json_schema_extra={"enum": list(SEARCHERS)})
    n_startup_trials: int | None = Field(
        None, ge=1, le=1000, description="As `n_startup_trials` of the arm, in its place."
    )
    grid_points: int | None = Field(None, ge=1, le=100, description="As `grid_points` of the arm, in its place.")

    @property
    def settings(self) -> SearcherSettings:
        """What is not a key of the arm as well."""
        return SearcherSettings(**{name: getattr(self, name) for name in SearcherSettings.model_fields})

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the settings that this algorithm has not, and why it cannot be used here."""
        own = SEARCHERS[self.name]
        for name in sorted(self.model_fields_set - {"name", *own}):
            if getattr(self, name) is not None:
                has = f"its settings are {', '.join(own)}" if own else "it has no settings"
                message = f"searcher.{name}: searcher {self.name} has no such setting; {has}"
                yield Conflict(message, f"searcher.{name}", "searcher.name")
        population, tournament = self.population_size or POPULATION, self.tournament_size or TOURNAMENT
        if self.name == "evolution" and self.tournament_size is not None and tournament > population:
            rule = f"searcher.tournament_size: must be at most the population of {population}, got {tournament}"
            yield Conflict(rule, "searcher.tournament_size", "searcher.population_size")
        if self.name == "cmaes":
            if population < LEAST_OF_CMAES:
                rule = f"searcher.population_size: must be at least {LEAST_OF_CMAES} for cmaes, got {population}"
                yield Conflict(rule, "searcher.population_size", "searcher.name")
            if find_spec("cmaes") is None:
                yield Conflict("searcher: cmaes needs a package: pip install 'nas-blockout[cmaes]'", "searcher")


class PluginSearcher(BaseModel):
    """A search algorithm of a plug-in, with its settings beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field(description="Name of the plug-in, or the place of its code.")

    @property
    def values(self) -> dict[str, Any]:
        """The settings that are given, by name."""
        return dict(self.model_extra or {})

    def own_settings(self) -> Any:
        """Return its settings as the plug-in has them.

        Raises:
            ValueError: There is no such plug-in, it cannot be used, or refuses its settings.
        """
        return searcher_settings(self.name, self.values)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield why it cannot be used with its settings."""
        yield from unusable_settings(self.own_settings, SEARCHER_CHOICES, self.name, _make_sampler)


Searcher = SearcherOptions | PluginSearcher


def searcher_settings(name: str, values: Mapping[str, Any]) -> Any:
    """Return the settings of the search algorithm of a plug-in; None for one that is built in.

    Args:
        name: Of the search algorithm.
        values: Settings by name; others have their defaults.

    Raises:
        ValueError: There is no such algorithm, it cannot be used, or refuses its settings.
    """
    algorithm = algorithm_named(name)
    return None if algorithm is None else from_json(algorithm.settings, values, where="searcher")


def _make_sampler(settings: Any, name: str) -> None:
    algorithm = algorithm_named(name)
    assert algorithm is not None, "it is a plug-in"
    algorithm.sampler(settings, 0)


def unusable_settings(
    read: Callable[[], Any], choices: Choices[Any], name: str, make: Callable[[Any, str], None]
) -> Iterator[Conflict]:
    """Yield why a plug-in cannot be used with its settings.

    Args:
        read: Returns its settings, or raises a ValueError.
        choices: The choices of its kind.
        name: Its name.
        make: Makes from settings and name what the search will ask.
    """
    key = choices.key
    try:
        settings = read()
    except ValueError as error:
        # An error of one setting begins with its key, such as `searcher.step: no such setting`.
        for each in conflicts_in(error):
            setting = re.match(rf"{key}\.\w+", str(each))
            yield Conflict(str(each), *(each.keys or (setting[0] if setting else key,)))
        return
    try:
        make(settings, name)
    except Exception as error:  # noqa: BLE001  # code of others may raise anything
        yield Conflict(f"{key}: the plug-in {choices.origin(name)} cannot be used: {told(error)}", key)


def names_of(wanted: Sequence[str]) -> str:
    """Return names as a text: ``'a', 'b' or 'c'``."""
    *others, last = map(repr, wanted)
    return f"{', '.join(others)} or {last}" if others else last


def _read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Read a name, or a mapping with a name and settings."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name not in SEARCHERS:
        if SEARCHER_CHOICES.is_known(name):
            return PluginSearcher.model_validate({"name": name} if name is value else value)
        place = () if name is value else ("name",)
        raise ValidationError.from_exception_data(
            "searcher", [{"type": unknown_name(SEARCHER_CHOICES.names()), "loc": place, "input": name}]
        )
    # Not by the handler, which would report one error for each kind of searcher.
    return (
        value
        if isinstance(value, BaseModel)
        else SearcherOptions.model_validate(value if name is not value else {"name": value})
    )


def unknown_name(known: Sequence[str]) -> PydanticCustomError:
    """Return the error of a name that is none of those that are known."""
    return PydanticCustomError("literal_error", "Input should be {expected}", {"expected": names_of(known)})


class _Schema:
    """The JSON Schema of a searcher: a name, or a mapping with a name; with plug-ins where they are shown."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema instead of that of the models."""
        shown = settings_models.shown_plugins("searcher")
        mapping = SearcherOptions.model_json_schema()
        own = [settings_models.model("searcher", name, named=True).model_json_schema() for name in shown]
        names = {"type": "string", "enum": [*SEARCHERS, *shown]}
        return {"anyOf": [names, {**mapping, "title": "SearcherOptions"}, *own]}


# A name, or a mapping with a name.
SearcherChoice = Annotated[SearcherOptions | PluginSearcher, WrapValidator(_read), _Schema()]
