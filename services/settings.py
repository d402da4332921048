"""Settings of an installation, from ``NAS_BLOCKOUT_*`` environment variables, which only this module reads."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, get_type_hints
from urllib.parse import unquote

from nas_blockout.plugins.installed import Origin
from nas_blockout.serialization import near
from services import sign_in_settings
from services.code_patterns import allows, read_patterns
from services.secret_files import SecretFileError, with_files
from services.setting_values import PREFIX, SettingsError, Variable, limit, masked, page, whole
from services.sign_in_settings import SignInSettings

__all__ = ["PREFIX", "Settings", "SettingsError", "SignInSettings", "Variable", "masked", "variables"]
MIN_TOKEN_CHARACTERS = 16
MOST_DAYS = 36_500
_RUNNING_STUDIES, _TURN_MINUTES = 4, 10
_DELETE_GRACE_DAYS, _AUDIT_DAYS = 7, 365
_API_BODY_BYTES, _API_RATE, _API_OPEN_STUDIES = 262_144, 20, 20
# A training of 200 million parameters needs about 3 GB for weights, gradients and momentum: half of a default worker.
STUDY_LIMITS: Mapping[str, int] = MappingProxyType(
    {
        "arms": 64,
        "epochs": 10_000,
        "parameters": 200_000_000,
        "trials": 100_000,
        "sample_passes": 10**12,
        "hours": 2_000,
    }
)
_IN_URLS = {ord(character): f"%{ord(character):02X}" for character in "%?#"}  # they would end the path, or begin a code
_OFF = frozenset({"", "none"})
_STORE_SCHEMES = frozenset({"sqlite", "postgres", "postgresql", "postgresql+psycopg"})
_FACTORY = r"[\w.]+:\w+"
_GUESSABLE = re.compile(r"change|secret|password|token|default|example|admin|1234", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an installation.

    The representation contains no secrets: passwords in URLs and the API token are shown as ``***``.
    """

    home: Annotated[
        Path,
        Variable("NAS_BLOCKOUT_HOME", "Folder under which `runs/` lies, one folder a study.", "the current folder"),
    ]
    store_url: Annotated[
        str,
        Variable(
            "NAS_BLOCKOUT_STORE_URL",
            "Database of studies and trials: `sqlite:////absolute/path.db` or "
            "`postgresql+psycopg://user:password@host/name`.",
            "`runs/nas_blockout.db` in the home folder, by SQLite",
        ),
    ]
    tracking_uri: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_TRACKING_URI",
            "MLflow's tracking server or database; empty or `none` turns MLflow off.",
            "`runs/mlflow.db` in the home folder, by SQLite",
        ),
    ] = None
    data: Annotated[
        Path | None, Variable("NAS_BLOCKOUT_DATA", "Folder of the data sets.", "the usual places of each data set")
    ] = None
    artifacts: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_ARTIFACTS",
            "Storage that all machines of a cluster reach, by fsspec URL such as `s3://bucket/prefix`, or the absolute "
            "path of a folder: for checkpoints and weights on their way, and a copy of each finished study's folder.",
            "none: the home folder must be the same on all machines",
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_RAY_ADDRESS",
            "Ray cluster to run on, such as `auto` or `ray://host:10001`.",
            "a cluster that is started for the study and ends with it",
        ),
    ] = None
    jobs_address: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_JOBS_ADDRESS",
            "Dashboard of the Ray cluster that studies are submitted to as jobs, such as `http://127.0.0.1:8265`.",
            "none: `submit` asks for `--address`, and the service does not start its worker",
        ),
    ] = None
    api_token: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_API_TOKEN",
            "Secret of the service: sessions of the page end with it, and it is itself a token of an administrator; "
            f"{MIN_TOKEN_CHARACTERS} characters or more.",
            "none: the API does not start",
        ),
    ] = None
    api_body_bytes: Annotated[
        int, Variable("NAS_BLOCKOUT_API_BODY_BYTES", "Most bytes of a request to the API.", "262144")
    ] = _API_BODY_BYTES
    api_rate: Annotated[
        int,
        Variable(
            "NAS_BLOCKOUT_API_RATE",
            "Requests a second that a token may send on average; four times as many at once.",
            "20",
        ),
    ] = _API_RATE
    api_open_studies: Annotated[
        int, Variable("NAS_BLOCKOUT_API_OPEN_STUDIES", "Studies that an owner may have queued or running.", "20")
    ] = _API_OPEN_STUDIES
    api_study_limits: Annotated[
        tuple[tuple[str, int], ...],
        Variable(
            "NAS_BLOCKOUT_API_STUDY_LIMITS",
            "The largest study that the API accepts, such as `arms=16,parameters=50000000`: its arms, the epochs of a "
            "training, the parameters of a network, the trials of all arms, and the sample passes and hours of the "
            "budget of an arm. What is not named keeps its default.",
            "`" + ",".join(f"{name}={most}" for name, most in STUDY_LIMITS.items()) + "`",
        ),
    ] = tuple(STUDY_LIMITS.items())
    running_studies: Annotated[
        int,
        Variable(
            "NAS_BLOCKOUT_RUNNING_STUDIES",
            "Submitted studies that run at once, of all owners; each has a driver on the head of the cluster.",
            "4",
        ),
    ] = _RUNNING_STUDIES
    turn_minutes: Annotated[
        int,
        Variable(
            "NAS_BLOCKOUT_TURN_MINUTES",
            "How long a submitted study may run before it makes room for an owner who holds less and waits.",
            "10",
        ),
    ] = _TURN_MINUTES
    owner_shares: Annotated[
        tuple[tuple[str, float], ...],
        Variable(
            "NAS_BLOCKOUT_OWNER_SHARES",
            "Shares of owners in the cluster where they compete for it, such as `ann=2,bob=0.5`.",
            "1 for every owner",
        ),
    ] = ()
    owner_trials: Annotated[
        int | None,
        Variable("NAS_BLOCKOUT_OWNER_TRIALS", "Trials that the submitted studies of an owner run at once.", "no limit"),
    ] = None
    owner_gpu_hours: Annotated[
        int | None,
        Variable(
            "NAS_BLOCKOUT_OWNER_GPU_HOURS",
            "GPU-hours that the submitted studies of an owner may use in 30 days; then they wait.",
            "no limit",
        ),
    ] = None
    owner_gigabytes: Annotated[
        int | None,
        Variable(
            "NAS_BLOCKOUT_OWNER_GIGABYTES",
            "Gigabytes of files in the home folder beyond which no further study of an owner starts.",
            "no limit",
        ),
    ] = None
    delete_grace_days: Annotated[
        int,
        Variable(
            "NAS_BLOCKOUT_DELETE_GRACE_DAYS",
            "Days for which a deleted study can be restored; then its files, rows and MLflow runs are deleted.",
            "7",
        ),
    ] = _DELETE_GRACE_DAYS
    retention_days: Annotated[
        int | None,
        Variable(
            "NAS_BLOCKOUT_RETENTION_DAYS",
            "Days after which a submitted study that has ended is deleted; the grace time follows.",
            "studies are kept",
        ),
    ] = None
    audit_days: Annotated[int, Variable("NAS_BLOCKOUT_AUDIT_DAYS", "Days for which the audit log is kept.", "365")] = (
        _AUDIT_DAYS
    )
    factories: Annotated[
        tuple[str, ...],
        Variable(
            "NAS_BLOCKOUT_FACTORIES",
            "Factories of networks that studies submitted to the API may name in `backbone.factory`: comma-separated "
            "patterns such as `torchvision.models:*`. Jobs call them with whatever arguments the study has.",
            "none: studies with the backbone `module` are refused",
        ),
    ] = ()
    plugins: Annotated[
        tuple[str, ...],
        Variable(
            "NAS_BLOCKOUT_PLUGINS",
            "Plug-ins that studies submitted to the API may name as backbone, method or space: comma-separated names "
            "and patterns such as `small_net,our_nets.*:*`. The API imports them to check their settings, the worker "
            "to read queued studies.",
            "none: studies with plug-ins are refused, and none is imported",
        ),
    ] = ()
    command_line_owner: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_COMMAND_LINE_OWNER",
            "Owner to whom the service shows the studies of this home that were run on the command line.",
            "none: administrators alone see them",
        ),
    ] = None
    weights: Annotated[
        Path | None,
        Variable(
            "NAS_BLOCKOUT_WEIGHTS",
            "Folder in which `backbone.weights` of studies that are submitted, to the API or by `submit`, must lie, "
            "the same on all machines.",
            "none: submitted studies with weights are refused",
        ),
    ] = None
    mlflow_url: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_MLFLOW_URL",
            "Where people open MLflow, such as `http://127.0.0.1:5000`; page, reports and terminal link to it.",
            "the page has no links to MLflow; those of reports and terminal are to the tracking server or `mlflow ui`",
        ),
    ] = None
    ray_url: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_RAY_URL",
            "Where people open Ray's dashboard in a browser, such as `http://127.0.0.1:8265`; the page links to it.",
            "no links to Ray",
        ),
    ] = None
    sign_in: SignInSettings | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, *, home: Path | None = None) -> "Settings":
        """Read the settings.

        Args:
            environment: Variables by name; those of the process if omitted.
            home: The home folder, in place of that of the environment; None to take that.

        Raises:
            SettingsError: A variable is invalid or unknown, or the file that holds its value cannot be read.
        """
        known = {variable.name for variable in variables()}
        try:
            values = with_files(os.environ if environment is None else environment, sorted(known))
        except SecretFileError as error:
            raise SettingsError(str(error)) from None
        for name in sorted(values):
            if name.startswith(PREFIX) and name not in known:
                raise SettingsError(f"{name}: unknown variable; {near(name, known)}")
        home = home or _folder(values, "HOME") or Path.cwd()
        return cls(
            home=home,
            store_url=_store_url(values.get(PREFIX + "STORE_URL", ""), home),
            tracking_uri=_tracking_uri(values.get(PREFIX + "TRACKING_URI"), home),
            data=_folder(values, "DATA"),
            artifacts=_artifacts(values.get(PREFIX + "ARTIFACTS", "")),
            ray_address=values.get(PREFIX + "RAY_ADDRESS", "").strip() or None,
            jobs_address=page(values, "JOBS_ADDRESS"),
            api_token=_token(values.get(PREFIX + "API_TOKEN", "")),
            api_body_bytes=whole(values, "API_BODY_BYTES", _API_BODY_BYTES),
            api_rate=whole(values, "API_RATE", _API_RATE),
            api_open_studies=whole(values, "API_OPEN_STUDIES", _API_OPEN_STUDIES),
            api_study_limits=_study_limits(values.get(PREFIX + "API_STUDY_LIMITS", "")),
            running_studies=whole(values, "RUNNING_STUDIES", _RUNNING_STUDIES),
            turn_minutes=whole(values, "TURN_MINUTES", _TURN_MINUTES),
            owner_shares=_owner_shares(values.get(PREFIX + "OWNER_SHARES", "")),
            owner_trials=limit(values, "OWNER_TRIALS"),
            owner_gpu_hours=limit(values, "OWNER_GPU_HOURS"),
            owner_gigabytes=limit(values, "OWNER_GIGABYTES"),
            delete_grace_days=whole(values, "DELETE_GRACE_DAYS", _DELETE_GRACE_DAYS, most=MOST_DAYS),
            retention_days=limit(values, "RETENTION_DAYS", most=MOST_DAYS),
            audit_days=whole(values, "AUDIT_DAYS", _AUDIT_DAYS, most=MOST_DAYS),
            factories=_patterns(values, "FACTORIES"),
            plugins=_patterns(values, "PLUGINS"),
            command_line_owner=values.get(PREFIX + "COMMAND_LINE_OWNER", "").strip() or None,
            weights=_folder(values, "WEIGHTS"),
            mlflow_url=page(values, "MLFLOW_URL"),
            ray_url=page(values, "RAY_URL"),
            sign_in=sign_in_settings.read(values),
        )

    @property
    def runs(self) -> Path:
        """Folder with a folder for each study, and the SQLite databases."""
        return self.home / "runs"

    def folder(self, study: str) -> Path:
        """Return the folder of a study."""
        return self.runs / study

    @property
    def named_owners(self) -> frozenset[str]:
        """Owners whom the operator has given something by their name, which nobody is to get by signing in."""
        named = {owner for owner, _ in self.owner_shares}
        return frozenset(named if self.command_line_owner is None else {*named, self.command_line_owner})

    def allows_factory(self, factory: str) -> bool:
        """Whether studies submitted to the API may name a factory; never one in a file, as ``path/to/file.py:name``."""
        return re.fullmatch(_FACTORY, factory) is not None and allows(self.factories, factory)

    def allows_origin(self, origin: Origin) -> bool:
        """Whether the API may import a plug-in, allowed by its name or the place of its code; never one in a file."""
        return any(allows(self.plugins, code) for code in (origin.name, origin.place))

    def allows_weights(self, path: str) -> bool:
        """Whether submitted studies may read a file of weights: one in the folder for them, links followed."""
        return (
            self.weights is not None
            and "\0" not in path
            and Path(path).is_absolute()
            and Path(path).resolve().is_relative_to(self.weights.resolve())
        )

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__slots__}
        shown["api_token"] = "***" if self.api_token else None
        texts = {name: masked(value) if isinstance(value, str) else value for name, value in shown.items()}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in texts.items())})"


def variables() -> tuple[Variable, ...]:
    """Return all environment variables, in the order of the settings."""
    return (*_variables(Settings), *_variables(SignInSettings))


def _variables(settings: type[Settings | SignInSettings]) -> Iterator[Variable]:
    hints = get_type_hints(settings, include_extras=True)
    return (hints[name].__metadata__[0] for name in settings.__slots__ if hasattr(hints[name], "__metadata__"))


def _folder(values: Mapping[str, str], variable: str) -> Path | None:
    text = values.get(PREFIX + variable, "").strip()
    if not text:
        return None
    if "\0" in text:
        raise SettingsError(f"{PREFIX}{variable}: a path must not contain NUL characters, got {text!r}")
    path = Path(text).expanduser().absolute()  # now: workers and jobs may run in another folder
    if path.exists() and not path.is_dir():
        raise SettingsError(f"{PREFIX}{variable} must be a folder, got the file {path}")
    return path


def _patterns(values: Mapping[str, str], variable: str) -> tuple[str, ...]:
    try:
        return read_patterns(values.get(PREFIX + variable, ""), variable)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}{variable} must be {error}") from None


def _artifacts(text: str) -> str | None:
    url = text.strip().rstrip("/")
    if not url:
        return None
    url = f"file://{url}" if url.startswith("/") else url
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s@?#]+", url):
        raise SettingsError(
            f"{PREFIX}ARTIFACTS must be a URL such as s3://bucket/prefix, or the absolute path of a folder that all "
            "machines share, without blanks and credentials (those stand where the storage's library looks for them, "
            f"such as AWS_ACCESS_KEY_ID), got {masked(url)!r}"
        )
    return url


def _study_limits(text: str) -> tuple[tuple[str, int], ...]:
    limits: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\w+)=([0-9]{1,15})", part)
        if match is None or match[1] not in STUDY_LIMITS or match[1] in limits or int(match[2]) < 1:
            raise SettingsError(
                f"{PREFIX}API_STUDY_LIMITS must be whole numbers from 1 on, each named once by one of "
                f"{', '.join(STUDY_LIMITS)}, separated by commas, such as arms=16,epochs=1000, got {part[:80]!r}"
            )
        limits[match[1]] = int(match[2])
    return tuple({**STUDY_LIMITS, **limits}.items())


def _owner_shares(text: str) -> tuple[tuple[str, float], ...]:
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([^=\s]+)=([0-9]{1,6}(?:\.[0-9]{1,6})?)", part)
        if match is None or float(match[2]) <= 0 or match[1] in shares:
            raise SettingsError(
                f"{PREFIX}OWNER_SHARES must be owners with positive numbers, separated by commas, each owner once, "
                f"such as ann=2,bob=0.5, got {part[:80]!r}"
            )
        shares[match[1]] = float(match[2])
    return tuple(shares.items())


def _store_url(text: str, home: Path) -> str:
    url = text.strip() or sqlite_url(home / "runs" / "nas_blockout.db")
    name = PREFIX + "STORE_URL"
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _STORE_SCHEMES:
        raise SettingsError(
            f"{name} must begin with sqlite:/// or postgresql+psycopg://, got {masked(url)!r}; for a SQLite file write "
            "sqlite:////absolute/path.db"
        )
    if scheme == "sqlite" and (not rest.startswith("/") or rest.strip("/") in ("", ":memory:")):
        raise SettingsError(f"{name} must name a file, such as sqlite:////absolute/path.db, got {url!r}")
    return _anchored(url)


def _tracking_uri(text: str | None, home: Path) -> str | None:
    if text is None:
        return sqlite_url(home / "runs" / "mlflow.db")
    if text.strip().lower() in _OFF:
        return None
    uri = text.strip()
    if not re.match(r"[a-z][a-z0-9+.-]*:", uri):
        raise SettingsError(
            f"{PREFIX}TRACKING_URI must be a URI such as http://127.0.0.1:5000 or sqlite:////absolute/path.db, "
            f"got {masked(uri)!r}; none turns MLflow off"
        )
    return _anchored(uri)


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file, whatever characters its path has; see `sqlite_path`."""
    return f"sqlite:///{str(path).translate(_IN_URLS)}"


def sqlite_path(url: str) -> Path:
    """Return the file that a SQLite URL names, as SQLAlchemy reads it."""
    return Path(unquote(url.removeprefix("sqlite:///").partition("?")[0]))


def _anchored(url: str) -> str:
    """Return a SQLite URL with an absolute path, so that it does not depend on the working directory."""
    scheme, separator, path = url.partition(":///")
    return f"{scheme}:///{Path(path).expanduser().absolute()}" if separator and scheme == "sqlite" else url


def _token(text: str) -> str | None:
    token = text.strip()
    if not token:
        return None
    short = len(token) < MIN_TOKEN_CHARACTERS or len(set(token)) < MIN_TOKEN_CHARACTERS / 2
    if short or _GUESSABLE.search(token):
        raise SettingsError(
            f"{PREFIX}API_TOKEN must be {MIN_TOKEN_CHARACTERS} characters or more that nobody can guess, "
            f"got {len(token)} characters; make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token
