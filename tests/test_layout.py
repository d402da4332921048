"""The tree is as the tables of `layout` say: who imports whom, who imports outside libraries, sizes, names.

Each rule is a function from the source files of a tree to its violations. The rules are applied to this repository,
and, to show that each of them can fail, to small trees that break it.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.layout import (
    ABSENT_FROM_LIBRARY,
    BELOW,
    CODE,
    EDGES,
    IMPORTERS,
    LEAVES,
    MOST_FILE_LINES,
    MOST_FUNCTION_LINES,
    MOST_MODULES,
    PACKAGES,
    SHARED_NAMES,
    VAGUE_NAMES,
)

ROOT = Path(__file__).resolve().parents[1]
MACHINE_PATHS = re.compile(r"(?<![\w.])/(work|tmp/work)/|(?<![\w.])/tmp/" + r"work\b")


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: its path from the root, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.path.partition("/")[0]


Tree = Mapping[str, Source]
Rule = Callable[[Tree], list[str]]


@cache
def read(root: Path) -> Tree:
    """All Python files of the code under `root`, by path."""
    paths = sorted(path for folder in CODE for path in (root / folder).rglob("*.py"))
    sources = {}
    for path in paths:
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        sources[name] = Source(name, text, ast.parse(text, name))
    return sources


def packages(tree: Tree) -> list[Source]:
    return [source for source in tree.values() if source.package in PACKAGES]


def called(node: ast.Call) -> str:
    """The last name of what is called, without the modules before it."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def imports(source: Source, modules: set[str]) -> Iterator[str]:
    """Modules that a file imports anywhere in it: at the top, in a function, for types, or by name at run time."""
    here = source.module.split(".") if source.path.endswith("__init__.py") else source.module.split(".")[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in modules else origin
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            yield from (
                arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            )


def unit(module: str) -> str:
    """The row of EDGES a module belongs to: `nas_blockout.methods.dropout` -> `methods`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_stay_on_their_edges(tree: Tree) -> list[str]:
    modules, found = {source.module for source in packages(tree)}, []
    for source in packages(tree):
        package, row = source.package, unit(source.module)
        allowed = EDGES[package].get(row)
        if allowed is None:
            found.append(f"{source.path}: {package}.{row} has no row in EDGES")
            continue
        for target in sorted({*imports(source, modules)}):
            other = target.partition(".")[0]
            if other not in PACKAGES or target == package:
                continue
            inside = other == package and (unit(target) in {row, *allowed, *LEAVES[package]} or "*" in allowed)
            if not inside and other not in BELOW[package]:
                found.append(f"{source.path}: {package}.{row} may not import {target}")
    return found


def imports_make_no_cycles(tree: Tree) -> list[str]:
    modules = {source.module for source in packages(tree)}
    edges = {source.module: {*imports(source, modules)} & modules - {source.module} for source in packages(tree)}
    done: set[str] = set()

    def cycle_from(module: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in done:
            return None
        found = next((hit for target in sorted(edges[module]) if (hit := cycle_from(target, (*path, module)))), None)
        done.add(module)
        return found

    cycles = (cycle_from(module, ()) for module in sorted(edges))
    return [" -> ".join(cycle) for cycle in cycles if cycle]


def outside_libraries_have_one_importer(tree: Tree) -> list[str]:
    known, found = {*sys.stdlib_module_names, *PACKAGES}, []
    for source in packages(tree):
        for library in sorted({name.partition(".")[0] for name in imports(source, set())} - known):
            if not any(fnmatch(source.path, pattern) for pattern in IMPORTERS.get(library, [])):
                where = " or ".join(IMPORTERS.get(library, []))
                rule = f"which only {where} may" if where else "which has no row in IMPORTERS"
                found.append(f"{source.path}: imports {library}, {rule}")
    return found


def library_reads_no_environment(tree: Tree) -> list[str]:
    return [
        f"{source.path}:{node.lineno}: reads the environment; take the value as an argument"
        for source in packages(tree)
        if source.package != "services"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute | ast.Name)
        and ast.unparse(node) in {"os.environ", "os.getenv", "environ", "getenv"}
    ]


def tables_have_no_dead_rows(tree: Tree) -> list[str]:
    """What a table allows and nobody uses is a hole: it would let in what was never decided."""
    sources = packages(tree)
    modules = {source.module for source in sources}
    used: dict[tuple[str, str], set[str]] = {}
    importers: dict[str, set[str]] = {}
    for source in sources:
        targets = {*imports(source, modules)}
        inside = {unit(target) for target in targets if target.partition(".")[0] == source.package}
        used.setdefault((source.package, unit(source.module)), set()).update(inside)
        for target in targets:
            importers.setdefault(target.partition(".")[0], set()).add(source.path)
    return [*_dead_edges(used), *_dead_importers(importers), *_dead_names(tree)]


def _dead_edges(used: Mapping[tuple[str, str], set[str]]) -> Iterator[str]:
    for package, rows in EDGES.items():
        for row, allowed in rows.items():
            if (package, row) not in used:
                yield f"EDGES: there is no {package}.{row}"
                continue
            for target in sorted(allowed - {"*"} - used[package, row]):
                yield f"EDGES: {package}.{row} does not import {target}"
    for package, leaves in LEAVES.items():
        everything = set().union(*(targets for (owner, _), targets in used.items() if owner == package))
        yield from (f"LEAVES: nobody in {package} imports {leaf}" for leaf in sorted(leaves - everything))


def _dead_importers(importers: Mapping[str, set[str]]) -> Iterator[str]:
    for library, patterns in IMPORTERS.items():
        for pattern in patterns:
            if not any(fnmatch(path, pattern) for path in importers.get(library, ())):
                yield f"IMPORTERS: nothing in {pattern} imports {library}"


def _dead_names(tree: Tree) -> Iterator[str]:
    counts = Counter(Path(source.path).stem for source in packages(tree))
    rooms = {source.module.rpartition(".")[2] for source in packages(tree) if source.path.endswith("__init__.py")}
    for name in sorted(SHARED_NAMES):
        if counts[name] + (name in rooms) < 2:
            yield f"SHARED_NAMES: {name} does not stand in several rooms"


def module_names_are_told_apart(tree: Tree) -> list[str]:
    """A name that stands twice for different things sends a reader to the wrong file."""
    places: dict[str, list[str]] = {}
    for source in packages(tree):
        name = Path(source.path).stem
        if name != "__init__" and "/migrations/versions/" not in source.path:
            places.setdefault(name, []).append(source.path)
    return [
        f"{name} stands in {' and in '.join(sorted(paths))}: give one another name, or a row in SHARED_NAMES"
        for name, paths in sorted(places.items())
        if len(paths) > 1 and name not in SHARED_NAMES
    ]


def rooms_are_small(tree: Tree) -> list[str]:
    rooms: Counter[str] = Counter()
    for source in packages(tree):
        path = Path(source.path)
        if path.stem != "__init__" and "versions" not in path.parts:
            rooms[path.parent.as_posix()] += 1
    return [
        f"{room}: {count} modules, at most {MOST_MODULES}"
        for room, count in sorted(rooms.items())
        if count > MOST_MODULES
    ]


def files_are_short(tree: Tree) -> list[str]:
    lines = {source.path: source.text.count("\n") for source in tree.values()}
    return [
        f"{path}: {count} lines, at most {MOST_FILE_LINES}" for path, count in lines.items() if count > MOST_FILE_LINES
    ]


def functions_are_short(tree: Tree) -> list[str]:
    found = []
    for source in tree.values():
        if "/migrations/versions/" in source.path:  # a list of statements that never changes again
            continue
        for node in ast.walk(source.tree):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and (lines := code_lines(node)) > MOST_FUNCTION_LINES
            ):
                found.append(f"{source.path}: {node.name} has {lines} lines, at most {MOST_FUNCTION_LINES}")
    return found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` on, without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    documented = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - documented


def names_say_what_is_inside(tree: Tree) -> list[str]:
    return [
        f"{path}: a module named {part} says nothing of what is in it"
        for path in tree
        for part in sorted(set(path.removesuffix(".py").split("/")) & VAGUE_NAMES)
    ]


RULES: tuple[Rule, ...] = (
    imports_stay_on_their_edges,
    imports_make_no_cycles,
    outside_libraries_have_one_importer,
    library_reads_no_environment,
    module_names_are_told_apart,
    rooms_are_small,
    files_are_short,
    functions_are_short,
    names_say_what_is_inside,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_layout(rule: Rule) -> None:
    found = rule(read(ROOT))
    assert found == [], "\n".join(found)


def test_tables_have_no_dead_rows() -> None:
    dead = tables_have_no_dead_rows(read(ROOT))
    assert dead == [], "\n".join(dead)


IMPORT_ALL = """
import importlib, pkgutil, sys
blocked = set(sys.argv[1].split(","))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not for the library")
sys.meta_path.insert(0, Block())
import numpy, torch  # Python's own `random` is left out: scikit-learn draws from it when it is imported
before = (torch.get_rng_state().tolist(), str(numpy.random.get_state()))
for package in ("nas_blockout.experiment", "nas_blockout.data", "search_spaces"):
    importlib.import_module(package)
slow = {"sklearn", "torchvision", "scipy.sparse", "torch._dynamo", "pandas"}  # four seconds, in every process
print(sorted(slow & set(sys.modules)))
for package in ("nas_blockout", "search_spaces"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        importlib.import_module(module.name)
assert before == (torch.get_rng_state().tolist(), str(numpy.random.get_state())), "drew at import"
print(len([name for name in sys.modules if name.startswith("nas_blockout.")]), sorted(blocked & set(sys.modules)))
"""


def test_library_imports_alone_and_draws_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL, ",".join(ABSENT_FROM_LIBRARY)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    modules = sum(source.package == "nas_blockout" for source in read(ROOT).values()) - 1
    assert result.stdout == f"[]\n{modules} []\n"


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git work tree: which files are tracked is not known")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def naming_a_machine(path: Path) -> list[int]:
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    return [number for number, line in enumerate(lines, 1) if MACHINE_PATHS.search(line)]


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    assert {str(path): lines for path in tracked_files() if (lines := naming_a_machine(path))} == {}
