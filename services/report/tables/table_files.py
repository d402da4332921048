"""A table as a file: CSV for a spreadsheet, LaTeX for a paper.

Of the LaTeX, ``booktabs`` is all that is needed, and ``longtable`` where a table is longer than a page.
"""

import csv
import io
import re

from services.report.tables.report_table import Cell, Number, Table, flat_columns

PAGE = 40  # rows
WIDE = 8  # columns
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a cell begins that a spreadsheet would run
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{''}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
    "\N{MINUS SIGN}": "$-$", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--", "\N{EM DASH}": "---", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}", "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{MICRO SIGN}": r"$\mu$", "\N{DEGREE SIGN}": r"$^\circ$", "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$", "\N{NO-BREAK SPACE}": "~", "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``", "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
}  # fmt: skip


def csv_text(shown: Table) -> str:
    """Return a table as CSV, with numbers in full precision and without thousands separators.

    Texts that a spreadsheet would run as a formula have an apostrophe before them.
    """
    columns = list(flat_columns(shown))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_text(f"{heading}, {end}" if end else heading) for heading, end, _, _ in columns])
    writer.writerows(zip(*([_csv_value(cell) for cell in cells] for *_, cells in columns), strict=True))
    return out.getvalue()


def latex_text(shown: Table) -> str:
    """Return a table as LaTeX, with the numbers as the page shows them.

    Scripts other than Latin are written as they are, and need LuaLaTeX or XeLaTeX.
    """
    columns = list(flat_columns(shown))
    heads = [escaped(f"{heading}, {end}" if end else heading) for heading, end, _, _ in columns]
    sides = "".join("l" if is_text else "r" for _, _, is_text, _ in columns)
    rows = [
        " & ".join(_bold(escaped(cell.text), cell) for cell in row) + r" \\"
        for row in zip(*(cells for *_, cells in columns), strict=True)
    ]
    head, label = " & ".join(heads) + r" \\", re.sub(r"[^a-z0-9-]+", "-", shown.name.lower())
    about = rf"\caption{{{escaped(' '.join(shown.caption.split()) or shown.title)}}}\label{{tab:{label}}}"
    if len(rows) > PAGE:
        lines = [
            r"% needs \usepackage{booktabs,longtable}", rf"\begin{{longtable}}{{{sides}}}", about + r" \\",
            r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot", *rows, r"\end{longtable}",
        ]  # fmt: skip
    else:
        wide = [r"% wide: leave columns out, or wrap tabular in \resizebox{\linewidth}{!}{...} of graphicx"]
        lines = [
            r"% needs \usepackage{booktabs}", *(wide if len(columns) > WIDE else ()), r"\begin{table}", r"\centering",
            about, rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule",
            r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return a text on one line for LaTeX, whatever characters are in it."""
    printable = "".join(each if each.isprintable() or each.isspace() else "" for each in text)
    return "".join(_SPECIAL.get(each, each) for each in " ".join(printable.split(" ")).replace("\n", " ")).strip()


def _bold(text: str, cell: Cell) -> str:
    return rf"\textbf{{{text}}}" if cell.style == "strong" and text else text


def _csv_value(cell: Cell) -> Number | str:
    if cell.value is not None and not isinstance(cell.value, tuple):
        return cell.value
    return _text("" if cell.text == "–" else cell.text)


def _text(text: str) -> str:
    return f"'{text}" if text[:1] in _FORMULA else text
