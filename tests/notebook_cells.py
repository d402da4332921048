"""Runs the code of notebooks and guides as their reader does: in a process of its own, one cell after the other.

The last expression of a cell is shown in every form that a notebook may show, so that what fails only in a notebook
fails here. A kernel is not needed for that, and none is installed for the tests.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900.0  # seconds for what takes a tenth of them on a machine with nothing else to do
RUNNER = """
import ast, json, sys, time
FORMS = ("_repr_html_", "_repr_png_", "_repr_svg_")
cells, names, shown = json.load(open(sys.argv[1], encoding="utf-8")), {"__name__": "__main__"}, []
for number, source in enumerate(cells):
    tree, began = ast.parse(source, f"cell {number}"), time.monotonic()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    forms = {form: getattr(value, form)() for form in FORMS if hasattr(type(value), form)}
    texts = {form: found if isinstance(found, str) else f"{len(found or b'')} bytes" for form, found in forms.items()}
    shown.append({"text": repr(value), **texts, "seconds": time.monotonic() - began})
json.dump(shown, open(sys.argv[2], "w", encoding="utf-8"))
"""


def code_of_notebook(path: Path) -> list[str]:
    """Return the code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def code_of_guide(path: Path) -> list[str]:
    """Return the blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(cells: Sequence[str], folder: Path) -> list[dict[str, str]]:
    """Run cells in a folder, in one process; return what each shows, by form, and how long it took."""
    program, given, shown = folder / "run_cells.py", folder / "cells.json", folder / "shown.json"
    program.write_text(RUNNER, encoding="utf-8")
    given.write_text(json.dumps(cells), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program, given, shown],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("NAS_BLOCKOUT_")},
            "PYTHONPATH": str(ROOT),
            "NAS_BLOCKOUT_HOME": str(folder),
            "MPLBACKEND": "agg",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, str]] = json.loads(shown.read_text(encoding="utf-8"))
    return found
