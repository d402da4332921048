"""A study in Python: from a study file or built in code, checked, run, and read."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nas_blockout.data import ArrayData, DataSettings, Dimensions, Splits, dimensions, load
from nas_blockout.data.splits import require_samples
from nas_blockout.interactive.html_text import heading, table
from nas_blockout.interactive.progress_line import ProgressLine
from nas_blockout.methods import method_name
from nas_blockout.serialization import count_of
from services.analysis.comparison import ComparisonDocument
from services.estimate import estimate
from services.execution import driver
from services.execution.driver import Observe, Progress
from services.execution.earlier_trials import of_home
from services.files.disk_full import explain_disk_full
from services.files.study_dir import Folder
from services.finalize.finalize import finish
from services.python_api.frames import EstimatedCost, arms_frame, trials_frame
from services.python_api.study_models import StudyModel
from services.python_api.study_report import ShownVerdict, StudyReport
from services.settings import Settings
from services.store import NotFound, Store
from services.study_config.errors import LineMap
from services.study_config.overrides import read_resolved
from services.study_config.resolution import study_of
from services.study_config.resolved_study import Study as ResolvedStudy
from services.study_config.searching.warm_starts import recalling
from services.study_config.validation import cautions, check_against_data
from services.study_config.yaml_reader import with_absolute_paths

SCHEMA_VERSION = 2


class StudyNotRun(LookupError):
    """Results of a study that has none yet, or of which others stand under its name."""


class Study:
    """A study: built in code with the keys of a study file, or read from one by `from_yaml`.

    Making one checks it against the rules that need no data, and writes nothing. Where studies are kept is what
    ``NAS_BLOCKOUT_HOME`` says, or `home`.

    Args:
        name: Name of the study and its folder.
        data: Settings of the data, as in a study file; a name alone; `ArrayData`; or settings whose ``name`` is an
            `ArrayData`, such as ``{"name": data, "augment": "shift"}``. None for the digits.
        home: Folder below which ``runs/`` lies; None for that of the installation.
        keys: All other keys of a study file, such as ``arms``, ``budget``, ``backbone``, ``training``, ``retrain``.
            Relative paths are relative to the current folder.

    Raises:
        StudyError: The study violates rules, all of which the error lists, as for a study file.
        SettingsError: An environment variable is invalid.
    """

    def __init__(
        self,
        name: str,
        *,
        data: str | Mapping[str, Any] | ArrayData | None = None,
        home: Path | str | None = None,
        **keys: Any,
    ) -> None:
        settings = _installation(home)
        document = {"schema_version": SCHEMA_VERSION, "name": name, **keys}
        arrays, named = _data(data)
        if named is not None:
            document["data"] = named
        source = f"Study({name!r})"
        measure = partial(_dimensions, arrays) if arrays is not None else dimensions
        with recalling(of_home(settings.store_url)):
            resolved = study_of(with_absolute_paths(document, Path()), source=source, measure=measure)
        self._take(resolved, settings, source, None, arrays)

    @classmethod
    def from_yaml(
        cls, study: Path | str, *, changes: Mapping[str, Any] | None = None, home: Path | str | None = None
    ) -> "Study":
        """Read a study file, or a bundled study by its name.

        Args:
            study: Path or name.
            changes: Keys to change, dotted, such as ``{"budget.trainings": 6}``; as ``--set`` on the command line.
            home: As of `Study`.

        Raises:
            StudyNotFound: There is no such study.
            StudyError: The study violates rules, all of which the error lists.
        """
        settings = _installation(home)
        assignments = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
        with recalling(of_home(settings.store_url)):
            resolved, origin = read_resolved(
                str(study), assignments, load=lambda asked: load(asked, root=settings.data)
            )
        made = cls.__new__(cls)
        made._take(resolved, settings, origin.source, origin.lines, None)
        return made

    def _take(
        self,
        resolved: ResolvedStudy,
        settings: Settings,
        source: str,
        lines: LineMap | None,
        arrays: ArrayData | None,
    ) -> None:
        self.resolved = resolved
        self.settings = settings
        self._source, self._lines, self._arrays = source, lines, arrays

    @property
    def name(self) -> str:
        """Name of the study and its folder."""
        return self.resolved.name

    @property
    def folder(self) -> Path:
        """Where its files are, or will be."""
        return self.settings.folder(self.name)

    def to_json(self) -> dict[str, Any]:
        """Return the study with every setting resolved, as plain JSON types."""
        return self.resolved.to_json()

    def validate(self) -> tuple[str, ...]:
        """Check the study against its data, which is read; return what should be known before it is run.

        Data that was given as `ArrayData` is written, if it is not there yet.

        Raises:
            StudyError: A network cannot be built for the data, or the budget is too small.
            DataError: The data cannot be used.
        """
        splits = self._splits()
        check_against_data(self.resolved, splits, source=self._source, lines=self._lines)
        return (*splits.notes, *cautions(self.resolved, splits))

    def estimate(self, *, quick: bool = True, progress: bool = False) -> EstimatedCost:
        """Train every arm briefly, and return what the study will cost; nothing is written but `ArrayData`.

        Args:
            quick: Whether to measure for about 4 seconds instead of 20.
            progress: Whether a line says what is measured.

        Raises:
            StudyError: The study cannot be run.
        """
        self._write_arrays()
        with ProgressLine(enabled=progress) as line:
            found = estimate(
                self.resolved, self.settings, source=self._source, lines=self._lines, quick=quick, log=line.show
            )
        return EstimatedCost(found)

    def run(self, *, progress: bool | Observe = True, workers: int | None = None) -> "Study":
        """Run the study, or go on with it, and write its report and models; return the study.

        A study that has ended is not run again. An interrupted one goes on where it was. A larger budget, more seeds
        or further arms under the same name extend it.

        Args:
            progress: Whether a line says how far it is, or what is called with the progress instead.
            workers: Number of trials at a time; None for what the study says.

        Raises:
            StudyError: A network cannot be built for the data, or the budget is too small; nothing was written.
            StudyConflict: There is another study of this name; the message names the key that differs.
            StudyBusy: Another process runs it.
            ClusterError: Ray cannot be started or reached.
        """
        study = self.resolved if workers is None else _with_workers(self.resolved, workers)
        self._write_arrays()
        remedy = "call run() again"
        with explain_disk_full(self.folder, resume=remedy), _shown(self.name, progress) as (observe, tell):
            completed, store, splits = driver.run(
                study, self.settings, observe=observe, source=self._source, lines=self._lines, log=tell
            )
            with store:
                finished = finish(completed, store, self.settings, splits=splits, log=tell)
        self.resolved = completed
        if finished.failed:
            _warn(f"{count_of(finished.failed, 'trial')} failed; `trials` has the reasons in the column reason")
        for arm, reason in finished.unexported.items():
            _warn(f"the model of {arm} was not exported: {reason}")
        return self

    @property
    def comparison(self) -> ComparisonDocument:
        """The comparison of the arms, as ``comparison.json`` has it.

        Raises:
            StudyNotRun: The study has not ended, or another one of this name has.
        """
        with self._stored():
            path = Folder(self.folder).comparison
            if not path.exists():
                raise StudyNotRun(f"study {self.name!r} has not ended: call run(), which goes on with it")
            return ComparisonDocument.read(path)

    @property
    def results(self) -> pd.DataFrame:
        """A row an arm: accuracies with their interval, costs, what is shown of it; see `comparison`."""
        return arms_frame(self.comparison)

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial, of one that runs or was interrupted as well.

        Raises:
            StudyNotRun: There are none.
        """
        with self._stored() as store:
            return trials_frame(store.trials(self.name))

    @property
    def verdict(self) -> ShownVerdict:
        """What the study shows, and which model to ship; see `comparison`."""
        return ShownVerdict.of(self.comparison)

    @property
    def report(self) -> StudyReport:
        """The report and its figures; see `comparison`."""
        _ = self.comparison
        return StudyReport.of(Folder(self.folder))

    @property
    def models(self) -> dict[str, StudyModel]:
        """The exported models by arm; see `comparison`."""
        document, models = self.comparison, Folder(self.folder).models
        return {
            arm: StudyModel(arm, models / arm, document.arms[arm], resolved.experiment)
            for arm, resolved in self.resolved.arms.items()
            if arm in document.arms and (models / arm).is_dir()
        }

    @property
    def best(self) -> StudyModel:
        """The model that the study says to ship; see `comparison`.

        Raises:
            StudyNotRun: It says to ship none; the message has the reason.
        """
        document = self.comparison
        shipped = document.shipped
        if shipped is None or shipped.arm not in (models := self.models):
            reason = document.reason if shipped is None else f"that of {shipped.arm} was not exported"
            raise StudyNotRun(f"study {self.name!r} has no model to ship: {reason}; `models` has what was exported")
        return models[shipped.arm]

    def __repr__(self) -> str:
        arms = count_of(len(self.resolved.arms), "arm")
        return f"<Study {self.name!r}: {arms}, data {self.resolved.data.name}, {self._state()}>"

    def _repr_html_(self) -> str:
        """Return the study, its arms and how far it is as HTML."""
        rows = [
            (name, method_name(arm.experiment.method), ", ".join(arm.spaces) or "-", arm.searcher, arm.description)
            for name, arm in self.resolved.arms.items()
        ]
        details = [self.resolved.config.question, f"{self._state()}; {self.folder}"]
        shown = heading(f"study {self.name}", details=[each for each in details if each])
        return shown + table(("arm", "method", "searched", "searcher", "description"), rows)

    def _state(self) -> str:
        try:
            return self.verdict.value.headline
        except StudyNotRun:
            return "no results yet"

    def _write_arrays(self) -> None:
        if self._arrays is not None:
            assert self.settings.data is not None, "`_installation` sets it"
            self._arrays.write(self.settings.data / "arrays")

    def _splits(self) -> Splits:
        self._write_arrays()
        return load(self.resolved.data, root=self.settings.data)

    @contextmanager
    def _stored(self) -> Iterator[Store]:
        """Yield the store, in which this very study is.

        Raises:
            StudyNotRun: It is not there, or another one is.
        """
        missing = f"study {self.name!r} has not been run in {self.settings.home}: call run()"
        if self.settings.store_url.startswith("sqlite:///") and not self.folder.exists():
            raise StudyNotRun(missing)  # nothing is written to ask
        with Store.open(self.settings.store_url) as store:
            try:
                row = store.study(self.name)
            except NotFound:
                raise StudyNotRun(missing) from None
            known = {row.config_hash, *(event.detail.get("config_hash") for event in store.events(self.name))}
            if self.resolved.hash not in known:
                raise StudyNotRun(
                    f"what stands in {self.folder} under the name {self.name!r} are results of other settings: call "
                    "run(), which extends that study or says what differs, or take another name"
                )
            yield store


def _installation(home: Path | str | None) -> Settings:
    """Return the settings of the installation; data sets default to the folder ``data`` in the home folder."""
    settings = Settings.from_environment(home=None if home is None else Path(home).expanduser().absolute())
    return replace(settings, data=settings.data or settings.home / "data")


def _data(data: str | Mapping[str, Any] | ArrayData | None) -> tuple[ArrayData | None, Any]:
    """Return arrays that stand in the settings of data, and the settings as a study file has them."""
    if isinstance(data, str):
        return None, {"name": data}
    options = dict(data) if isinstance(data, Mapping) else {"name": data}
    arrays = options.get("name")
    if not isinstance(arrays, ArrayData):
        return None, data
    return arrays, {**options, "name": "arrays", "content": arrays.content}


def _dimensions(arrays: ArrayData, settings: DataSettings) -> Dimensions:
    splits = arrays.splits(split_seed=settings.split_seed)
    if settings.train_samples is not None:
        require_samples(settings.train_samples, len(splits.train), split="train")
    return Dimensions(splits.shape, len(splits.class_names), settings.train_samples or len(splits.train))


def _with_workers(study: ResolvedStudy, workers: int) -> ResolvedStudy:
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    changed = study.config.workers.model_copy(update={"max_concurrent_trials": workers})
    return replace(study, config=study.config.model_copy(update={"workers": changed}))


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


@contextmanager
def _shown(name: str, progress: bool | Observe) -> Iterator[tuple[Observe, Callable[[str], None]]]:
    """Yield what is called with the progress, and with texts on what is done."""
    with ProgressLine(enabled=progress is True) as line:

        def tell(text: str) -> None:
            if text.startswith("warning: "):
                _warn(text.removeprefix("warning: "))
            line.show(f"{name}: {text}")

        yield progress if callable(progress) else lambda found: line.show(f"{name}: {told(found)}"), tell


def told(progress: Progress) -> str:
    """Return the progress of a study in one line."""
    if not any(arm.running or arm.done or arm.failed for arm in progress.arms):
        return "starting Ray ..."
    done, running, failed = (sum(getattr(arm, key) for arm in progress.arms) for key in ("done", "running", "failed"))
    best = max(((arm.best, arm.name) for arm in progress.arms if arm.best is not None), default=None)
    parts: Sequence[str | None] = (
        f"{progress.share:.0%} of the budget",
        f"{count_of(done, 'trial')} done",
        f"{running} running",
        f"{failed} failed" if failed else None,
        f"best validation accuracy {best[0]:.1%} ({best[1]})" if best is not None else None,
        f"{progress.seconds:.0f} s",
        f"about {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else None,
    )
    return ", ".join(filter(None, parts))
