"""The modules that a command imports only when it runs; the one place in this folder where imports are deferred.

torch, Ray, MLflow and Optuna take seconds to import. `nas-blockout --help`, a misspelled option and `token list` need
none of them and must answer at once, so the command modules import nothing heavier than typer at the top and read the
rest as attributes of this module: ``lazy.store.Store`` imports ``services.store`` the first time it is read.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same modules as in MODULES, for the type checker and the editor
    import httpx as httpx
    import torch as torch
    import yaml as yaml

    import search_spaces as search_spaces
    from nas_blockout import backbones as backbones
    from nas_blockout import data as data
    from nas_blockout import devices as devices
    from nas_blockout import experiment as experiment
    from nas_blockout import export as export
    from nas_blockout import methods as methods
    from nas_blockout import plots as plots
    from nas_blockout import training as training
    from nas_blockout.data.streaming import image_io as image_io
    from nas_blockout.experiment import layer_table as layer_table
    from nas_blockout.export import model_summary as model_summary
    from nas_blockout.export import prediction as prediction
    from nas_blockout.statistics import significance as significance
    from nas_blockout.structure import branching as branching
    from services import api as api
    from services import bundle as bundle
    from services import cluster as cluster
    from services import dispatch as dispatch
    from services import estimate as estimate
    from services import migrations as migrations
    from services import removal as removal
    from services import replay as replay
    from services import search_plugins as search_plugins
    from services import store as store
    from services import tracking as tracking
    from services.analysis import comparison as comparison
    from services.analysis import cross_study as cross_study
    from services.analysis import learned_structure as learned_structure
    from services.analysis import robustness as robustness
    from services.analysis import verdict as verdict
    from services.analysis.searches import proxy_check as proxy_check
    from services.budget import accounting as accounting
    from services.cli import progress as progress
    from services.cluster import jobs as jobs
    from services.execution import destination as destination
    from services.execution import driver as driver
    from services.execution import earlier_trials as earlier_trials
    from services.files import disk_full as disk_full
    from services.files import remote as remote
    from services.files import shipped_code as shipped_code
    from services.finalize import finalize as finalize
    from services.finalize import mlflow_pages as mlflow_pages
    from services.finalize import mlflow_runs as mlflow_runs
    from services.finalize import trial_table as trial_table
    from services.publishing import to_folder as to_folder
    from services.publishing import to_hub as to_hub
    from services.store import schema_version as schema_version
    from services.study_config import errors as errors
    from services.study_config import overrides as overrides
    from services.study_config import resolution as resolution
    from services.study_config import schema as schema
    from services.study_config import settings_models as settings_models
    from services.study_config import upgrade as upgrade
    from services.study_config import validation as validation
    from services.study_config import yaml_reader as yaml_reader
    from services.study_config.searching import pruners as pruners
    from services.study_config.searching import searchers as searchers
    from services.study_config.searching import warm_starts as warm_starts

MODULES = {
    "httpx": "httpx",
    "torch": "torch",
    "yaml": "yaml",
    "backbones": "nas_blockout.backbones",
    "data": "nas_blockout.data",
    "devices": "nas_blockout.devices",
    "experiment": "nas_blockout.experiment",
    "export": "nas_blockout.export",
    "methods": "nas_blockout.methods",
    "training": "nas_blockout.training",
    "plots": "nas_blockout.plots",
    "image_io": "nas_blockout.data.streaming.image_io",
    "layer_table": "nas_blockout.experiment.layer_table",
    "model_summary": "nas_blockout.export.model_summary",
    "prediction": "nas_blockout.export.prediction",
    "significance": "nas_blockout.statistics.significance",
    "branching": "nas_blockout.structure.branching",
    "search_spaces": "search_spaces",
    "api": "services.api",
    "bundle": "services.bundle",
    "cluster": "services.cluster",
    "dispatch": "services.dispatch",
    "estimate": "services.estimate",
    "migrations": "services.migrations",
    "tracking": "services.tracking",
    "removal": "services.removal",
    "replay": "services.replay",
    "store": "services.store",
    "comparison": "services.analysis.comparison",
    "cross_study": "services.analysis.cross_study",
    "learned_structure": "services.analysis.learned_structure",
    "robustness": "services.analysis.robustness",
    "verdict": "services.analysis.verdict",
    "proxy_check": "services.analysis.searches.proxy_check",
    "accounting": "services.budget.accounting",
    "progress": "services.cli.progress",
    "jobs": "services.cluster.jobs",
    "destination": "services.execution.destination",
    "driver": "services.execution.driver",
    "earlier_trials": "services.execution.earlier_trials",
    "disk_full": "services.files.disk_full",
    "remote": "services.files.remote",
    "shipped_code": "services.files.shipped_code",
    "to_folder": "services.publishing.to_folder",
    "to_hub": "services.publishing.to_hub",
    "finalize": "services.finalize.finalize",
    "mlflow_pages": "services.finalize.mlflow_pages",
    "mlflow_runs": "services.finalize.mlflow_runs",
    "trial_table": "services.finalize.trial_table",
    "schema_version": "services.store.schema_version",
    "search_plugins": "services.search_plugins",
    "overrides": "services.study_config.overrides",
    "errors": "services.study_config.errors",
    "schema": "services.study_config.schema",
    "searchers": "services.study_config.searching.searchers",
    "pruners": "services.study_config.searching.pruners",
    "warm_starts": "services.study_config.searching.warm_starts",
    "settings_models": "services.study_config.settings_models",
    "upgrade": "services.study_config.upgrade",
    "resolution": "services.study_config.resolution",
    "yaml_reader": "services.study_config.yaml_reader",
    "validation": "services.study_config.validation",
}

if not TYPE_CHECKING:  # hidden from the type checker, which would otherwise accept any name

    def __getattr__(name: str) -> object:
        """Import a module the first time it is read; Python then finds it here without asking again."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(MODULES[name])
        globals()[name] = module
        return module
