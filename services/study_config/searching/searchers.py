"""The search algorithms by name, and which settings each of them has."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from nas_blockout.settings_fields import Conflict

GRID_POINTS = 3
STARTUP_TRIALS = 4
POPULATION = 20
TOURNAMENT = 5
LEAST_OF_CMAES = 4  # the best half must be two or more to have a covariance
# By name: the settings that it has. The order is that of the documentation.
SEARCHERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "random": (),
        "qmc": ("sequence",),
        "grid": ("grid_points",),
        "tpe": ("n_startup_trials", "multivariate"),
        "gp": ("n_startup_trials",),
        "cmaes": ("n_startup_trials", "population_size", "margin"),
        "nsga2": ("population_size", "mutation_probability"),
        "nsga3": ("population_size", "mutation_probability"),
        "evolution": ("population_size", "tournament_size"),
    }
)
ONE_OBJECTIVE = ("cmaes", "evolution")  # they compare trials by one number


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


def names_of(wanted: Sequence[str]) -> str:
    """Return names as a text: ``'a', 'b' or 'c'``."""
    *others, last = map(repr, wanted)
    return f"{', '.join(others)} or {last}" if others else last


def _read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Read a name, or a mapping with a name and settings."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name not in SEARCHERS:
        unknown = PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": names_of(list(SEARCHERS))}
        )
        place = () if name is value else ("name",)
        raise ValidationError.from_exception_data("searcher", [{"type": unknown, "loc": place, "input": name}])
    return handler({"name": value} if name is value else value)


_MAPPING = SearcherOptions.model_json_schema()
# A name, or a mapping with a name.
SearcherChoice = Annotated[
    SearcherOptions,
    WrapValidator(_read),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(SEARCHERS)},
                {**_MAPPING, "title": "SearcherOptions"},
            ]
        }
    ),
]
