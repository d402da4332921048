"""Tables as CSV and LaTeX, and that the files beside a report are those of its page."""

import base64
import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.files.study_dir import Folder
from services.report import ReportView, render, write
from services.report.page import script_hash
from services.report.tables.report_table import Cell, Column, Table, share, table
from services.report.tables.table_files import PAGE, csv_text, escaped, latex_text
from services.report.view import Told, sentences
from tests.services.report.test_report import parsed, renamed

MadeUp = Callable[..., ReportView]
HOSTILE = [
    "a & b",
    r"\input{/etc/passwd}",
    "50% of $x_1^2$ #3 {~}",
    "a\nb\x00\u202e",
    "[x] \\\\ \\hline",
    "−1.5 ± 2 · é",
]
TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|[{}&$%#_^~]|[^\\{}&$%#_^~]+")
# Commands that a file may hold: of LaTeX, booktabs and longtable; with how many arguments in braces.
COMMANDS = {
    "begin": 1, "end": 1, "centering": 0, "caption": 1, "label": 1, "toprule": 0, "midrule": 0, "bottomrule": 0,
    "endhead": 0, "endfoot": 0, "textbf": 1, "textbackslash": 1, "textasciicircum": 1, "textasciitilde": 1,
    "textless": 1, "textgreater": 1, "textbar": 1, "textasciigrave": 1, "ldots": 1, "pm": 0, "times": 0, "cdot": 0,
    "mu": 0, "circ": 0, "leq": 0, "geq": 0, "rightarrow": 0,
}  # fmt: skip
MATH = {"pm", "times", "cdot", "mu", "circ", "leq", "geq", "rightarrow"}


ENDS_A_CELL = {"toprule", "midrule", "bottomrule", "endhead", "endfoot", "begin", "end", "caption"}


def check_command(name: str, following: str, environments: list[str], *, is_math: bool) -> None:
    """Fail on a command that TeX does not know, not here, or without its argument; keep account of environments."""
    assert name in COMMANDS, f"no TeX without further packages knows \\{name}"
    assert (name in MATH) == is_math, f"\\{name} {'in' if is_math else 'outside'} math"
    assert not COMMANDS[name] or following.startswith("{"), f"\\{name} has its argument"
    if name in ("begin", "end"):
        environment = re.match(r"\{(\w+)\}", following)
        assert environment is not None
        if name == "begin":
            environments.append(environment[1])
        else:
            assert environments.pop() == environment[1]


def check_latex(text: str) -> list[list[str]]:
    """Read a table as TeX would, fail on what TeX would stumble at, and return the cells of its rows, still escaped."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert "\n\n" not in body, "an empty line would end a paragraph inside a command"
    tokens = TOKEN.findall(body)
    assert "".join(tokens) == body, "every character is read"
    environments, rows, row, is_math, depth = list[str](), list[list[str]](), [""], False, 0
    for index, token in enumerate(tokens):
        if token == r"\\" and depth == 0:
            rows.append(row)
            row = [""]
            continue
        if token == "&":
            assert depth == 0
            row.append("")
            continue
        if re.fullmatch(r"\\[a-zA-Z]+\*?", token):
            check_command(token[1:], "".join(tokens[index + 1 : index + 4]), environments, is_math=is_math)
            row[-1] = "" if token[1:] in ENDS_A_CELL else row[-1]
        assert token not in ("%", "#", "_"), f"{token} stands bare"
        assert token != "^" or is_math
        depth += (token == "{") - (token == "}")
        assert depth >= 0
        is_math ^= token == "$"
        row[-1] += token
    assert (depth, is_math, environments) == (0, False, [])
    return rows


def example(rows: int = 2) -> Table:
    cells = [
        [Cell("a_b", role="learned"), Cell("1,234.50", 1234.5, "1.2 to 3.4", (1.2, 3.4)), "=HYPERLINK(1)"],
        [Cell("50% & c"), Cell("–"), Cell("-", style="strong")],
    ]
    columns = [Column("arm"), Column("accuracy", "95% interval", unit="%"), Column("note", is_prose=True)]
    return table(
        "an-example", "An example", "How to read it: 100% & more.", columns, [cells[n % 2] for n in range(rows)]
    )


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="'x' has 2 columns, got a row of 1 cells"):
        table("x", "X", "", ["a", "b"], [["1"]])


def test_csv_has_numbers_in_full_ends_of_intervals_apart_and_no_formulas() -> None:
    rows = list(csv.reader(io.StringIO(csv_text(example()))))
    assert rows[0] == ["arm", "accuracy (%)", "95% interval (%), low", "95% interval (%), high", "note"]
    assert rows[1] == ["a_b", "1234.5", "1.2", "3.4", "'=HYPERLINK(1)"]
    assert rows[2] == ["50% & c", "", "", "", "'-"]


def test_latex_is_as_wide_as_its_rows_and_escapes_what_tex_would_run() -> None:
    text = latex_text(example())
    rows = check_latex(text)
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"\begin{tabular}{lrrrl}" in text
    assert [len(row) for row in rows] == [5, 5, 5]
    assert [cell.replace(r"\midrule", "").strip() for cell in rows[1]] == [
        r"a\_b",
        "1,234.50",
        "1.2",
        "3.4",
        "=HYPERLINK(1)",
    ]
    assert r"50\% \& c" in rows[2][0]
    assert "How to read it: 100\\% \\& more." in text


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_out_of_its_cell(text: str) -> None:
    rows = check_latex(latex_text(table("x", text, text, [Column("arm"), text], [[text, Cell(text, style="strong")]])))
    assert [len(row) for row in rows] == [2, 2]
    assert "\n" not in escaped(text)


def test_a_long_table_goes_over_pages() -> None:
    text = latex_text(example(PAGE + 1))
    assert r"\begin{longtable}{lrrrl}" in text
    assert len(check_latex(text)) == PAGE + 3, "the caption, the heading, the rows"
    assert "longtable" not in latex_text(example(PAGE))


def test_the_checks_of_latex_can_fail() -> None:
    for wrong in (r"\begin{tabular}", "a_b", "{", "$x", r"\input{x}", "a & b}", r"\pm"):
        with pytest.raises((AssertionError, IndexError)):
            check_latex(wrong)


def test_shares_of_nothing_are_no_numbers() -> None:
    assert share(1, 4) == Cell("25.0%", 25.0)
    assert share(0, 0).value is None


def test_every_table_and_figure_of_a_study_is_a_file(whole_report: Path) -> None:
    root = whole_report / "report"
    page = parsed((root / "index.html").read_text(encoding="utf-8"))
    links = {
        link.attributes["download"]: link.attributes["href"] for link in page.all("a") if "download" in link.attributes
    }
    shown = [e.attributes["id"].removeprefix("table-") for e in page.all("div") if e.attributes.get("class") == "data"]
    assert len(shown) == len(page.all("table")) > 8
    assert {path.name for path in (root / "tables").iterdir()} == {
        f"{n}.{end}" for n in shown for end in ("csv", "tex")
    }
    pdfs = {path.name for path in (root / "figures").glob("*.pdf")}
    assert {name.removesuffix(".pdf") for name in pdfs} == {path.stem for path in (root / "figures").glob("*.svg")}
    assert links.keys() == {path.name for path in (root / "tables").iterdir()} | pdfs
    for name, address in links.items():
        path = next(root.glob(f"*/{name}"))
        assert base64.b64decode(address.partition(";base64,")[2]) == path.read_bytes(), "the page holds the file itself"
    for name in shown:
        rows = list(csv.reader(io.StringIO((root / "tables" / f"{name}.csv").read_text(encoding="utf-8"))))
        cells = check_latex((root / "tables" / f"{name}.tex").read_text(encoding="utf-8"))
        cells = cells[1:] if len(cells) > len(rows) else cells  # a long table ends its caption like a row
        assert {len(row) for row in rows} == {len(row) for row in cells} == {len(rows[0])}
        assert len(rows) == len(cells)
    assert all((root / "figures" / name).read_bytes().startswith(b"%PDF-") for name in pdfs)


def test_the_numbers_of_a_csv_are_those_of_the_comparison(whole_report: Path, made_up: MadeUp) -> None:
    rows = list(
        csv.DictReader(io.StringIO((whole_report / "report" / "tables" / "arms.csv").read_text(encoding="utf-8")))
    )
    arms = made_up().comparison["arms"]
    assert sorted(row["arm"] for row in rows) == sorted(arms)
    for row in rows:
        test = arms[row["arm"]]["test_accuracy"]
        assert math.isclose(float(row["test accuracy (%)"]), 100 * test["mean"])
        assert math.isclose(float(row["95% interval (%), high"]), 100 * test["ci95"][1])
        assert int(row["parameters"]) == arms[row["arm"]]["parameters"]


def test_a_pdf_is_the_same_for_the_same_study_and_has_no_type_3_fonts(
    whole_report: Path, made_up: MadeUp, tmp_path: Path
) -> None:
    few = made_up(arms=["dense", "dropout"], seeds=2, trials=1, length=2)
    for folder in ("a", "b"):
        write(few, Folder(tmp_path / folder))
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")}
    assert any(path.suffix == ".pdf" for path in files)
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    assert b"/Type3" not in (whole_report / "report" / "figures" / "accuracy.pdf").read_bytes()


def test_the_page_lets_its_own_script_run_and_no_other(made_up: MadeUp) -> None:
    page = parsed(render(made_up(arms=["dense"], seeds=2, trials=1, length=2)))
    policy = next(e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src {script_hash()};" in policy.attributes["content"]
    (script,) = page.all("script")
    assert script.text == (Path(__file__).parents[3] / "services" / "templates" / "report.js").read_text(
        encoding="utf-8"
    )


def repeated(html: str) -> dict[str, int]:
    """Sentences of more than six words that stand twice in a page.

    Left out are the cells of tables, the study file, and what stands below every figure: n, and where its data is.
    """
    text = re.sub(r'<span class="source">.*?</figcaption>', " ", html, flags=re.DOTALL)
    text = re.sub(r"<(script|style|svg|pre|td|th)\b.*?</\1>", " ", text, flags=re.DOTALL)
    blocks = re.split(r"</?(?:p|li|ul|dd|dt|dl|div|h\d|figcaption|caption|summary|section|br|nav|b|span)\b[^>]*>", text)
    said: dict[str, int] = {}
    for block in blocks:
        for sentence in sentences(re.sub(r"<[^>]+>", "", block)):
            key = sentence.strip().rstrip(".!?").lower()
            if len(key.split()) > Told.SHORT:
                said[key] = said.get(key, 0) + 1
    return {sentence: count for sentence, count in said.items() if count > 1}


def test_no_sentence_stands_twice(whole_report: Path, made_up: MadeUp) -> None:
    assert repeated((whole_report / "report" / "index.html").read_text(encoding="utf-8")) == {}
    twins = made_up(arms=["dense", "blockout", "blockout-soft", "random"], seeds=2, trials=2, length=4)
    html = render(twins)
    assert repeated(html) == {}
    assert "Read it like Figure" in html, "two arms that learn have figures of the same kinds"
    assert repeated("<p>One of two sentences that are the same.</p>" * 2) != {}


def test_who_says_a_thing_again_names_who_said_it_first() -> None:
    told = Told()
    long = "Dots are means over seeds, thin lines their range."
    assert told.once(f"{long} Short one.", "Figure 1") == f"{long} Short one."
    assert (
        told.once(f"Another arm is here. {long} Short one.", "Figure 2")
        == "Another arm is here. Short one. Read it like Figure 1."
    )
    assert told.once(f"New words. {long}", "Figure 3", again="") == "New words."
    assert told.once("An interval of 1.5 to 2. 5 of them.") == "An interval of 1.5 to 2. 5 of them."


def test_of_ten_thousand_trials_and_one_the_page_lists_all_but_one_and_says_so(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.report.tables import cost_tables

    monkeypatch.setattr(cost_tables, "MOST_TRIALS", 30)  # the file has all of them, whatever the page lists
    view = made_up(arms=["dense"], seeds=2, trials=1, length=2)
    more = [*view.trials, *(replace(view.trials[0], number=number) for number in range(1, 30))]
    html = render(replace(view, trials=more))
    assert f"Here are the first 30 of {len(more)} rows." in html


def test_arms_of_like_names_do_not_share_a_file(tmp_path: Path, made_up: MadeUp) -> None:
    arms = ["blockout", "blockout-soft"]
    view = renamed(made_up(arms=arms, seeds=2, length=4), {"blockout": "a b", "blockout-soft": "a/b"})
    path = write(view, Folder(tmp_path))
    drawn = len(parsed(path.read_text(encoding="utf-8")).all("figure"))
    assert len(list((path.parent / "figures").glob("*.svg"))) == drawn
    assert len(list((path.parent / "figures").glob("*.pdf"))) == drawn
