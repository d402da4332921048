"""Structured dropout and learned network structure: methods, backbones, data, training and export.

The library needs torch, torchvision, numpy, scikit-learn and scipy; it reads no environment variable and talks to no
service. Importing this package does no work: what is below is imported when it is first read, and so is any module,
such as `nas_blockout.experiment`.

    import nas_blockout as nb

    nb.learn_structure     the structure of one network, without a study
    nb.LearnedNetwork      what that returns, and how it is read back
    nb.ArrayData           arrays, tensors, datasets and loaders as data
    nb.BlockoutClassifier  the same as an estimator of scikit-learn
    nb.Study               studies; needs the extra `services`
    nb.torchvision         torchvision, also where its wheel does not fit torch

The guide is docs/guides/python.md.
"""

from importlib import import_module

__version__ = "0.1.0"

# By name: the module that has it. `services.python_api` stands above the library, which imports nothing of it: it is
# looked up here, by name and when it is asked for, and the library does without it. `__init__.pyi` says the same to
# type checkers.
_LAZY = {
    "ArrayData": "nas_blockout.data",
    "BlockoutClassifier": "nas_blockout.interactive.classifier",
    "LearnedNetwork": "nas_blockout.interactive.learned_network",
    "Study": "services.python_api",
    "learn_structure": "nas_blockout.interactive.learning",
    "torchvision": "nas_blockout.lazy_torchvision",
}
_OURS = ("nas_blockout", "search_spaces", "services")


def __getattr__(name: str) -> object:
    """Import what is asked for the first time; Python then finds it here without asking again.

    Raises:
        AttributeError: There is nothing of that name.
        ImportError: It needs an extra that is not installed; the message names it.
    """
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found: object = getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in _OURS or not _LAZY[name].startswith("services"):
            raise
        raise ImportError(
            f"nas_blockout.{name} needs the extra 'services', of which {missing} is not installed; run: "
            "pip install 'nas-blockout[services]'",
            name=missing,
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names of this package, with those that are imported when they are first read."""
    return sorted({*globals(), *_LAZY})
