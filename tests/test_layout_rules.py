"""Each rule of the layout can fail: small trees that break it, and what it then says."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.test_layout import (
    RULES,
    Rule,
    Tree,
    files_are_short,
    functions_are_short,
    imports_make_no_cycles,
    imports_stay_on_their_edges,
    library_reads_no_environment,
    module_names_are_told_apart,
    names_say_what_is_inside,
    naming_a_machine,
    outside_libraries_have_one_importer,
    read,
    rooms_are_small,
    tables_have_no_dead_rows,
)

LONG_FUNCTION = "def long():\n" + '    """One.\n\n    Two.\n    """\n' + "    pass\n" * 60
BREACHES: list[tuple[Rule, dict[str, str], str]] = [
    (imports_stay_on_their_edges,
     {"nas_blockout/training.py": "from nas_blockout.methods import METHODS"},
     "nas_blockout/training.py: nas_blockout.training may not import nas_blockout.methods"),
    (imports_stay_on_their_edges,
     {"nas_blockout/methods/dropout.py": "def f():\n    import nas_blockout.experiment"},
     "nas_blockout/methods/dropout.py: nas_blockout.methods may not import nas_blockout.experiment"),
    (imports_stay_on_their_edges,
     {"nas_blockout/data/digits.py": "from ..training import fit"},
     "nas_blockout/data/digits.py: nas_blockout.data may not import nas_blockout.training"),
    (imports_stay_on_their_edges,
     {"nas_blockout/data/__init__.py": "from ..training import fit"},
     "nas_blockout/data/__init__.py: nas_blockout.data may not import nas_blockout.training"),
    (imports_stay_on_their_edges,
     {"nas_blockout/training.py": "from nas_blockout import data", "nas_blockout/data/__init__.py": ""},
     "nas_blockout/training.py: nas_blockout.training may not import nas_blockout.data"),
    (imports_stay_on_their_edges,
     {"nas_blockout/experiment.py": "import search_spaces"},
     "nas_blockout/experiment.py: nas_blockout.experiment may not import search_spaces"),
    (imports_stay_on_their_edges,
     {"search_spaces/branched.py": "from services.settings import Settings"},
     "search_spaces/branched.py: search_spaces.branched may not import services.settings"),
    (imports_stay_on_their_edges,
     {"services/store.py": "from services.execution.driver import run"},
     "services/store.py: services.store may not import services.execution.driver"),
    (imports_stay_on_their_edges,
     {"services/novel.py": ""},
     "services/novel.py: services.novel has no row in EDGES"),
    (imports_make_no_cycles,
     {"nas_blockout/methods/a.py": "from nas_blockout.methods import b",
      "nas_blockout/methods/b.py": "def f():\n    from nas_blockout.methods.a import g"},
     "nas_blockout.methods.a -> nas_blockout.methods.b -> nas_blockout.methods.a"),
    (outside_libraries_have_one_importer,
     {"services/execution/driver.py": "def f():\n    from ray import tune"},
     "services/execution/driver.py: imports ray, which only services/cluster/* may"),
    (outside_libraries_have_one_importer,
     {"nas_blockout/training.py": "import importlib\nimportlib.import_module('torchvision.io')"},
     "nas_blockout/training.py: imports torchvision, which only nas_blockout/lazy_torchvision.py may"),
    (outside_libraries_have_one_importer,
     {"search_spaces/branched.py": "import requests"},
     "search_spaces/branched.py: imports requests, which has no row in IMPORTERS"),
    (library_reads_no_environment,
     {"nas_blockout/data/cifar.py": "import os\nroot = os.environ['HOME']"},
     "nas_blockout/data/cifar.py:2: reads the environment; take the value as an argument"),
    (module_names_are_told_apart,
     {"services/api/queue.py": "", "services/store/queue.py": ""},
     "queue stands in services/api/queue.py and in services/store/queue.py: give one another name, or a row in "
     "SHARED_NAMES"),
    (rooms_are_small,
     {f"services/store/m{number}.py": "" for number in range(13)},
     "services/store: 13 modules, at most 12"),
    (files_are_short,
     {"tests/test_long.py": "\n" * 501},
     "tests/test_long.py: 501 lines, at most 500"),
    (functions_are_short,
     {"docs/long.py": LONG_FUNCTION},
     "docs/long.py: long has 61 lines, at most 60"),
    (names_say_what_is_inside,
     {"services/utils.py": ""},
     "services/utils.py: a module named utils says nothing of what is in it"),
    (names_say_what_is_inside,
     {"tests/core/test_x.py": ""},
     "tests/core/test_x.py: a module named core says nothing of what is in it"),
]  # fmt: skip


def plant(root: Path, files: Mapping[str, str]) -> Tree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return read(root)


@pytest.mark.parametrize(("rule", "files", "message"), BREACHES)
def test_a_breach_is_found_and_named(rule: Rule, files: dict[str, str], message: str, tmp_path: Path) -> None:
    assert rule(plant(tmp_path, files)) == [message]


def test_a_tree_within_the_rules_passes_them_all(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "nas_blockout/__init__.py": "",
            "nas_blockout/lazy_torchvision.py": "import torchvision",
            "nas_blockout/methods/__init__.py": "from . import dropout",
            "nas_blockout/methods/dropout.py": "import torch\nfrom nas_blockout.lazy_torchvision import torchvision",
            "nas_blockout/experiment.py": "from nas_blockout.methods import dropout\nimport nas_blockout.training",
            "nas_blockout/training.py": "def fit():\n" + "    pass\n" * 59,
            "search_spaces/branched.py": "from nas_blockout.experiment import Experiment",
            "services/cluster/trials.py": "import ray, os\nos.environ['RAY_AUTH_MODE']",
            "services/cli/main.py": "import typer\nfrom services import cluster\nimport search_spaces",
        },
    )
    assert {rule.__name__: rule(tree) for rule in RULES if rule(tree)} == {}


def test_a_dead_row_is_found_and_named(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "services/store/__init__.py": "from services.settings import Settings",
            "services/settings.py": "",
            "services/replay/pool.py": "import services.search",
            "services/search/__init__.py": "",
        },
    )
    dead = tables_have_no_dead_rows(tree)
    for row in (
        "EDGES: there is no services.cli",
        "EDGES: services.store does not import migrations",
        "EDGES: services.replay does not import study_config",
        "LEAVES: nobody in services imports renamed_keys",
        "IMPORTERS: nothing in services/tracking/* imports mlflow",
        "SHARED_NAMES: blockout does not stand in several rooms",
    ):
        assert row in dead
    assert not [
        row
        for row in dead
        if row.startswith(
            ("EDGES: services.replay does not import search", "LEAVES: nobody in services imports settings")
        )
    ]


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, _, _ in BREACHES} == set(RULES)


def test_a_path_of_one_machine_is_found(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    home = "/" + "work"  # in two parts, or this file would be found too
    path.write_text(f"see frame{home}/x\nroot = '{home}/main'\ncd /tmp{home}\n", encoding="utf-8")
    assert naming_a_machine(path) == [2, 3]
