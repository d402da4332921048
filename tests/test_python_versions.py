"""What is claimed of newer Pythons: every file compiles without a warning, and the package is imported."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLAIMED = re.findall(
    r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)
PROGRAM = """
import pathlib
for package in ("nas_blockout", "search_spaces", "services"):
    for path in sorted(pathlib.Path(package).rglob("*.py")):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
import nas_blockout
print("learn_structure" in dir(nas_blockout))
"""


def interpreter(version: str) -> str:
    """Return a Python of a version: on the PATH, or of pyenv; a shim that cannot run is passed over."""
    places = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
    for found in filter(None, (shutil.which(f"python{version}"), *map(str, places))):
        if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip(f"Python {version} is not installed")


@pytest.mark.parametrize("version", CLAIMED)
def test_every_file_compiles_and_the_package_is_imported(version):
    command = [
        interpreter(version),
        "-I",
        "-B",
        "-W",
        "error",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})" + PROGRAM,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
