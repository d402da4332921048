"""Measure the shape of the code: modules per room, lines per file and function, comments, imports between rooms.

``python benchmarks/code_shape.py [ROOT]`` prints one column of the table in docs/decisions/rooms-and-words.md; with the
root of an older checkout it measures that one.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("nas_blockout", "search_spaces", "services")


def sources(root: Path) -> dict[str, str]:
    """The modules of the packages by path, without migrations, which never change again."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py") if "versions" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def functions(tree: ast.Module) -> Iterator[int]:
    """Lines of each function, from its ``def``, without its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            lines = (node.end_lineno or 0) - node.lineno + 1
            yield lines - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and not token.string.startswith("# type:") for token in tokens)


def code_lines(text: str, tree: ast.Module) -> int:
    """Lines of code: not blank, not only a comment, not in a docstring."""
    documented: set[int] = set()
    for node in ast.walk(tree):
        holder = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if holder and ast.get_docstring(node, clean=False) is not None:
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in documented for n, line in lines)


def room(path: str) -> str:
    """The room of a module; a module that lies flat in its package is a room of its own."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return "/".join(parts[:2])


def imports(texts: dict[str, str]) -> set[tuple[str, str]]:
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in texts}
    pairs = set()
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            pairs |= {(room(path), room(modules[name])) for name in names if name in modules}
    return {(a, b) for a, b in pairs if a != b and b not in PACKAGES}


def main() -> None:
    texts = sources(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
    trees = {path: ast.parse(text) for path, text in texts.items()}
    folders = Counter(str(Path(path).parent) for path in texts if not path.endswith("__init__.py"))
    names = Counter(Path(path).stem for path in texts if not path.endswith("__init__.py"))
    file_lines = sorted(text.count("\n") for text in texts.values())
    function_lines = sorted(lines for tree in trees.values() for lines in functions(tree))
    code = sum(code_lines(text, trees[path]) for path, text in texts.items())
    largest, most = folders.most_common(1)[0]
    rows = {
        "modules": len(texts),
        "rooms and flat modules": len({room(path) for path in texts}),
        "most modules in a folder": f"{most} ({largest})",
        "module names that occur more than once": sum(count > 1 for count in names.values()),
        "imports between rooms": len(imports(texts)),
        "lines of code": code,
        "file lines, median / 95%": _spread(file_lines),
        "function lines, median / 95%": _spread(function_lines),
        "functions over 40 lines": sum(lines > 40 for lines in function_lines),
        "comments per 100 lines of code": round(100 * sum(map(comments, texts.values())) / code, 1),
    }
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def _spread(values: list[int]) -> str:
    return f"{statistics.median(values):.0f} / {statistics.quantiles(values, n=20)[-1]:.0f}"


if __name__ == "__main__":
    main()
