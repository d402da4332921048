"""`import nas_blockout as nb`: cheap, complete, and clear where an extra is missing."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nas_blockout as nb

ROOT = Path(__file__).resolve().parents[2]
CHEAP = """
import sys
import nas_blockout as nb
heavy = {"torch", "numpy", "sklearn", "ray", "mlflow", "sqlalchemy", "pandas", "services"}
print(sorted(heavy & set(sys.modules)), sorted(set(nb._LAZY) - set(dir(nb))))
"""
WITHOUT_SERVICES = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "mlflow", "sqlalchemy", "pydantic"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
import nas_blockout as nb
nb.learn_structure, nb.ArrayData, nb.LearnedNetwork, nb.BlockoutClassifier
try:
    nb.Study
except ImportError as error:
    print(error)
"""
FAILED_FIRST = """
try:
    import torchvision
except RuntimeError:
    pass
import nas_blockout as nb
print(nb.torchvision.models.resnet18(num_classes=2).fc.out_features)
import torchvision
print(torchvision is nb.torchvision)
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    assert run(CHEAP) == "[] []\n"


def test_without_the_services_the_library_is_whole_and_a_study_names_the_extra():
    told = run(WITHOUT_SERVICES)
    assert told.startswith("nas_blockout.Study needs the extra 'services', of which ")
    assert told.endswith(" is not installed; run: pip install 'nas-blockout[services]'\n")


def test_torchvision_is_there_even_after_an_import_of_it_has_failed():
    assert run(FAILED_FIRST) == "2\nTrue\n"


def test_every_name_is_what_its_module_has_and_type_checkers_are_told_of_it():
    stub = ast.parse((ROOT / "nas_blockout" / "__init__.pyi").read_text(encoding="utf-8"))
    told = {
        alias.asname: node.module if isinstance(node, ast.ImportFrom) else "nas_blockout.lazy_torchvision"
        for node in stub.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert told == nb._LAZY
    for name, module in nb._LAZY.items():
        assert getattr(nb, name) is getattr(import_module(module), name)


def test_the_one_name_above_the_library_is_the_python_api():
    """The layout test sees imports, not names: what this table names is what it would have to allow."""
    assert {name for name in nb._LAZY.values() if not name.startswith("nas_blockout.")} == {"services.python_api"}
