"""The layout as tables: who may import whom, the importers of each outside library, names that are shared, sizes."""

from collections.abc import Mapping

PACKAGES = ("nas_blockout", "search_spaces", "services")
CODE = (*PACKAGES, "tests", "benchmarks", "docs")

# What each package may import of ours; imports run downward only.
BELOW = {"nas_blockout": set(), "search_spaces": {"nas_blockout"}, "services": {"search_spaces", "nas_blockout"}}

# Leaves that everyone in their package may import.
LEAVES = {
    "nas_blockout": {
        "architecture",
        "atomic_files",
        "batch_statistics",
        "canonical_form",
        "lazy_torchvision",
        "networks",
        "nodes",
        "plugins",
        "randomness",
        "serialization",
        "settings_fields",
        "training_protocol",
    },
    "search_spaces": {"trial"},
    "services": {
        "plugin_records",
        "renamed_keys",
        "search_plugins",
        "secret_files",
        "setting_values",
        "settings",
        "sign_in_settings",
        "trial_record",
    },
}

# What each module or room may import inside its own package, besides the leaves. `*`: everything.
EDGES: Mapping[str, Mapping[str, set[str]]] = {
    "nas_blockout": {
        "__init__": set(),
        "architecture": set(),
        "atomic_files": set(),
        "batch_statistics": set(),
        "canonical_form": set(),
        "devices": set(),
        "lazy_torchvision": set(),
        "networks": set(),
        "nodes": set(),
        "randomness": set(),
        "serialization": set(),
        "training_protocol": set(),
        "settings_fields": set(),
        "methods": set(),
        "training": set(),
        "data": set(),
        "statistics": set(),
        "plugins": set(),
        "testing": {"backbones", "data", "experiment", "methods", "training"},
        "plots": {"structure"},  # how layers are folded into the columns of a diagram
        # Cards and summaries say how far a network branches, predictions which images are unlike those of validation.
        "export": {"statistics", "structure"},
        "backbones": set(),
        "graph": {"backbones"},  # folding, and what operations are expected to take
        "structure": {"backbones", "methods"},
        "interactive": {"backbones", "data", "experiment", "export", "methods", "plots", "structure", "training"},
        "experiment": {"backbones", "data", "export", "graph", "methods", "structure", "training"},
    },
    "search_spaces": {
        "__init__": {"*"},
        "trial": set(),
        "blockdrop": set(),
        "blockout": set(),
        "branched": {"graph_stages"},
        "confusion": set(),
        "darts": set(),
        "graph_stages": set(),
        "grid": set(),
        "regularizers": set(),
        "studies": set(),  # the networks that bundled studies name by their file
        "training": set(),
    },
    "services": {  # the rooms in the order of the life of a study
        "__init__": set(),
        "settings": {"code_patterns"},
        "setting_values": set(),
        "sign_in_settings": set(),
        "secret_files": set(),
        "renamed_keys": set(),
        "code_patterns": set(),
        "plugin_records": set(),
        "search_plugins": set(),
        "trial_record": set(),
        "healthcheck": set(),
        "study_config": set(),
        "migrations": set(),
        "store": {"migrations"},
        "files": {"store", "study_config"},
        "budget": {"study_config"},
        "search": {"budget", "study_config"},
        "testing": {"search", "study_config"},
        "cluster": {"files", "study_config"},
        "tracking": {"store"},
        "execution": {"budget", "cluster", "files", "search", "store", "study_config", "tracking"},
        "estimate": {"search", "study_config"},
        "replay": {"search", "store", "study_config"},
        "analysis": {"budget", "search", "store", "study_config"},
        "report": {"analysis", "budget", "files"},
        "bundle": {"files", "store"},
        "finalize": {"analysis", "budget", "files", "report", "store", "study_config", "tracking"},
        "publishing": set(),  # of what the library has exported
        "entry_point": {"cli"},
        "removal": {"files", "store", "tracking"},
        "dispatch": {"budget", "cluster", "files", "removal", "store", "study_config"},
        "api": {
            *("analysis", "budget", "cluster", "execution", "files", "finalize", "report", "store", "study_config")
        },
        "python_api": {"analysis", "estimate", "execution", "files", "finalize", "store", "study_config"},
        "cli": {"*"},
    },
}  # fmt: skip

# The one file that imports each outside library. What has no row may not be imported by the packages at all.
IMPORTERS = {
    "ray": ["services/cluster/*"],
    "aiohttp": ["services/cluster/jobs.py"],  # comes with ray[default]; its errors are the job client's
    "optuna": [
        "services/search/samplers.py",
        "services/search/sampling/*",
        "services/search/sampler_history.py",
        "services/search/normal_tail.py",
        "services/analysis/searches/importance.py",
    ],
    "mlflow": ["services/tracking/*"],
    "sqlalchemy": ["services/store/*", "services/migrations/*"],
    "alembic": ["services/migrations/*"],
    "fastapi": ["services/api/*"],
    "starlette": ["services/api/*"],
    "uvicorn": ["services/api/app.py", "services/api/requests/connections.py"],
    "h11": ["services/api/requests/connections.py"],  # comes with uvicorn; the state of its connections
    "sse_starlette": ["services/api/event_stream.py"],
    "typer": ["services/cli/*"],
    "rich": ["services/cli/*"],
    "jinja2": ["services/report/page.py", "services/api/web.py"],
    "prometheus_client": ["services/api/metrics.py"],
    "pydantic": ["services/study_config/*", "services/analysis/*", "services/api/*"],
    "pandas": ["services/python_api/*"],
    "pydantic_core": [
        "services/study_config/settings_models.py",
        "services/study_config/searching/searchers.py",
    ],  # the errors that a validator of pydantic may raise
    "yaml": ["services/*"],
    "fsspec": ["services/files/*"],
    "authlib": ["services/api/sign_in/provider.py", "services/api/sign_in/id_tokens.py"],
    "joserfc": ["services/api/sign_in/provider.py", "services/api/sign_in/id_tokens.py"],
    "httpx": ["services/api/*", "services/cli/lazy_modules.py", "services/publishing/to_hub.py"],
    "huggingface_hub": ["services/publishing/to_hub.py"],
    "matplotlib": ["nas_blockout/plots/*"],
    "onnxruntime": ["nas_blockout/export/subprocess_check.py"],
    "onnxscript": ["nas_blockout/export/onnx_graph.py"],
    "onnx_ir": ["nas_blockout/export/onnx_graph.py"],
    "safetensors": [
        "nas_blockout/export/*",
        "nas_blockout/backbones/pretrained.py",
        "nas_blockout/data/arrays/array_files.py",
    ],
    "torchvision": ["nas_blockout/lazy_torchvision.py"],
    "pyarrow": ["nas_blockout/data/listings/labeled_rows.py"],
    "PIL": ["nas_blockout/data/*"],
    "igraph": ["nas_blockout/canonical_form.py"],
    "sklearn": ["nas_blockout/*"],
    "scipy": ["nas_blockout/*"],
    "torch": ["nas_blockout/*", "services/*", "search_spaces/studies/*.py"],  # the last: networks of bundled studies
    "numpy": ["nas_blockout/*", "services/*"],
}

ABSENT_FROM_LIBRARY = ("ray", "mlflow", "optuna", "sqlalchemy", "pydantic")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "misc"}
# Module names that stand in several rooms because they are the same thing in each; any other name stands once.
SHARED_NAMES = {
    "accuracy": "its figures in plots, its section in report",
    "blockdrop": "the method, and the space of its settings",
    "blockout": "the method, and the space of its settings",
    "branched": "the network, and the space of its architectures",
    "confusion": "the branches that follow from it, their search space, its figure, its section in report",
    "darts": "the method, and the space of its settings",
    "corruption": "its figures in plots, its section in report",
    "errors": "of data, of the store, of the API",
    "export": "the room that writes models, and the step of a study that calls it",
    "labels": "of figures in plots, of nodes in a network's graph",
    "latency": "measured by export, compared by analysis",
    "models": "writing them in export, the commands on them in cli",
    "robustness": "measured by corruptions, compared by analysis",
    "registry": "what there is by name: of data sources, of corruptions",
    "studies": "in the store, over HTTP, on the command line",
    "training": "what a network's graph does in training, and the space of the settings of training",
    "trials": "run by the cluster, recorded by the store",
}
MOST_FILE_LINES = 500
MOST_MODULES = 12
MOST_FUNCTION_LINES = 60
