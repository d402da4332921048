"""What stands in a report: everything of the study, in any state of it, and nothing that is not its own."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from services.analysis.comparison import ComparisonDocument, asked
from services.analysis.seed_metrics import PairResult
from services.analysis.verdict import ship_heading, ship_rows, verdict_of
from services.files.study_dir import Folder
from services.report import ReportView, render, write
from services.trial_record import Trial

REPORT_SCRIPT = (Path(__file__).parents[3] / "services" / "templates" / "report.js").read_text(encoding="utf-8")
MadeUp = Callable[..., ReportView]
TWO = ("dense", "blockout")
FEW: dict[str, Any] = {"arms": ["dense"], "seeds": 1, "trials": 1, "length": 2, "keep": lambda trial: trial.is_model}


@dataclass
class Element:
    """A tag of a page with its attributes and the text inside."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """A page as a browser reads it: its elements in order, and what is still open."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"every element is closed in its turn, got </{tag}>"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def renamed(view: ReportView, names: Mapping[str, str]) -> ReportView:
    """The same study with other names of its arms."""
    found = json.loads(json.dumps(view.comparison))
    found["arms"] = {names.get(arm, arm): value for arm, value in found["arms"].items()}
    found["ranking"] = [names.get(arm, arm) for arm in found["ranking"]]
    for pair in found["pairs"]:
        pair.update({side: names.get(pair[side], pair[side]) for side in ("a", "b")})
    trials = [replace(trial, arm=names.get(trial.arm, trial.arm)) for trial in view.trials]
    epochs = {(names.get(arm, arm), *rest): records for (arm, *rest), records in view.epochs.items()}
    return replace(view, comparison=found, trials=trials, epochs=epochs)


def broken(trial: Trial) -> Trial:
    return replace(trial, state="failed", reason="diverged", score=None, result=None)


def bare(trial: Trial) -> Trial:
    """The same trial with no more than what a comparison needs."""
    kept = ("validation_accuracy", "test_accuracy")
    return replace(trial, result={key: trial.outcome.get(key) for key in kept if trial.result})


@pytest.fixture(scope="module")
def study(made_up: MadeUp) -> ReportView:
    return made_up()


@pytest.fixture(scope="module")
def report(whole_report: Path) -> str:
    return (whole_report / "report" / "index.html").read_text(encoding="utf-8")


SMALL: dict[str, dict[str, Any]] = {
    "one arm": {"arms": ["dense"], "seeds": 2, "trials": 1},
    "one seed": {"arms": TWO, "seeds": 1, "trials": 1},
    "no blockout": {"arms": ["dense", "dropout"], "seeds": 2, "trials": 2},
    "no retrained model": {"arms": TWO, "keep": lambda trial: not trial.is_model},
    "one arm without models": {"arms": TWO, "keep": lambda trial: trial.arm == "dense" or not trial.is_model},
    "all failed": {"arms": TWO, "change": broken},
    "no trials": {"arms": TWO, "keep": lambda trial: False},
    "no search": {"arms": TWO, "seeds": 2, "keep": lambda trial: trial.is_model},
    "nothing kept": {"arms": TWO, "seeds": 2, "change": bare, "with_epochs": False},
    "one epoch": {"arms": TWO, "seeds": 2, "length": 1},
    "two classes": {"arms": TWO, "seeds": 2, "classes": 2},
}


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_any_study_has_a_report(settings: dict[str, Any], made_up: MadeUp) -> None:
    view = made_up(**{"length": 6, **settings})
    page = parsed(render(view))
    assert [element.text.strip() for element in page.all("h1")] == ["made-up"]
    check_figures(page)
    rows = [element.text for element in page.all("th") if element.attributes.get("scope") == "row"]
    assert all(any(arm in row for row in rows) for arm in view.comparison["arms"])


def test_classes_without_names_are_numbered(made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=2, classes=12)
    page = parsed(render(replace(view, class_names=())))
    check_figures(page)
    found = [figure.attributes["id"] for figure in page.all("figure")]
    assert [name for name in found if name.startswith("architecture")]
    assert not [name for name in found if name.startswith("classes")], "nothing says that its last layer is the classes"


def check_figures(page: Page) -> None:
    figures, captions, drawings = page.all("figure"), page.all("figcaption"), page.all("svg")
    assert len(figures) == len(captions) == len(drawings)
    for number, (caption, drawing) in enumerate(zip(captions, drawings, strict=True), start=1):
        assert re.match(rf"Figure {number}\. \w", caption.text)
        assert "n = " in caption.text
        if re.search(r"(?i)\bmeans?\b", caption.text):  # then it says where the spread is
            assert re.search(r"(?i)bars|band|interval|dots are seeds|single seeds", caption.text), caption.text
        assert "There is no band" not in caption.text  # where nothing is a mean, nobody looks for one
        assert re.search(r"Data: (comparison\.json|trials\.csv|the store|models)", caption.text)
        assert drawing.attributes["role"] == "img"
        assert "n = " in drawing.attributes["aria-label"]
    identifiers = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(set(identifiers)) == len(identifiers)
    links = [value for e in page.elements for key, value in e.attributes.items() if key in ("href", "xlink:href")]
    own = re.compile(r"#|data:(image/png|text/csv|application/x-tex|application/pdf);base64,|(figures|tables)/[\w.-]+$")
    assert all(own.match(link) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(identifiers)


def test_the_report_needs_nothing_but_itself(report: str) -> None:
    page = parsed(report)
    assert [script.text for script in page.all("script")] == [REPORT_SCRIPT]
    assert not page.all("link", "iframe", "object", "embed", "base", "form", "img", "video", "audio")
    assert not [key for e in page.elements for key in e.attributes if key.startswith("on") or key == "src"]
    assert "@import" not in report
    assert set(re.findall(r"url\((.)", report)) == {"#"}
    languages = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' <]*", report)) == languages
    policy = next(e for e in page.all("meta") if "http-equiv" in e.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_the_report_links_to_pages_of_mlflow_and_loads_none(made_up: MadeUp) -> None:
    address = "http://127.0.0.1:5000/#/experiments/1/runs?a=1&b=2"
    page = parsed(render(replace(made_up(arms=TWO, seeds=2, length=4), links={"arms": address})))
    assert [e.text for e in page.all("a") if e.attributes["href"] == address] == ["arms"]


def test_the_report_is_the_same_every_time(made_up: MadeUp) -> None:
    assert render(made_up(arms=TWO, seeds=2, length=4)) == render(made_up(arms=TWO, seeds=2, length=4))


def test_the_verdict_stands_before_all_numbers(study: ReportView, report: str) -> None:
    found = verdict_of(ComparisonDocument.model_validate(study.comparison))
    verdict = next(e for e in parsed(report).all("p") if e.attributes.get("class", "").startswith("verdict"))
    assert verdict.text == f"{found.headline}."
    listed = next(e for e in parsed(report).all("ul") if e.attributes.get("class") == "numbers")
    assert listed.text.split("\n")[1:-1] == list(found.numbers)
    assert report.index('class="verdict') < report.index('class="ship"') < report.index("<table")


def test_the_model_to_ship_stands_before_all_numbers_and_is_marked_in_the_table(study: ReportView, report: str) -> None:
    document = ComparisonDocument.model_validate(study.comparison)
    page = parsed(report)
    ship = next(e for e in page.all("div") if e.attributes.get("class") == "ship")
    assert ship_heading(document) in ship.text
    for label, text in ship_rows(document):
        assert f"{label}{text}" in ship.text
    assert document.shipped is not None
    marked = [e.text for e in page.all("th") if e.text.endswith("ship") and e.attributes.get("scope") == "row"]
    assert len(marked) == 1
    assert f" {document.shipped.arm}{document.arms[document.shipped.arm].role}" in marked[0]


@pytest.mark.parametrize("name", ["no retrained model", "all failed", "no trials"])
def test_without_a_model_the_report_says_that_there_is_none_to_ship(name: str, made_up: MadeUp) -> None:
    page = parsed(render(made_up(**{"length": 2, **SMALL[name]})))
    ship = next(e for e in page.all("div") if e.attributes.get("class") == "ship")
    assert ship.text.strip().startswith("No model to ship: ")


def test_the_table_says_what_the_comparison_says(study: ReportView, report: str) -> None:
    table = parsed(report).all("table")[0].text
    for name, arm in study.comparison["arms"].items():
        mean, (low, high) = arm["test_accuracy"]["mean"], arm["test_accuracy"]["ci95"]
        assert f"{name}{arm['role']}: made up" in table
        assert f"{100 * mean:.2f}{100 * low:.2f} to {100 * high:.2f}, 5 seeds" in table
        assert f"{arm['parameters']:,}" in table
        assert f"{arm['macs']:,}" in table
        cost = arm["cost"]["retrain"]
        assert f"{cost['sample_passes']:,}{cost['seconds']:,.1f} s" in table
        assert f"{arm['trials']}{arm['failed']} failed" in table
    order = [table.index(f" {name}{study.comparison['arms'][name]['role']}") for name in study.comparison["ranking"]]
    assert order == sorted(order)


def test_every_pair_has_its_difference_and_verdict(study: ReportView, report: str) -> None:
    table = next(t.text for t in parsed(report).all("table") if "First arm minus second" in t.text)
    shown = asked(ComparisonDocument.model_validate(study.comparison))
    assert {pair.model_dump_json() for pair in shown} == {
        PairResult.model_validate(pair).model_dump_json() for pair in study.comparison["pairs"]
    }
    for pair in study.comparison["pairs"]:
        points = f"{100 * pair['difference']:+.2f}".replace("-", "\N{MINUS SIGN}")
        assert re.search(rf"{pair['a']}{pair['b']}{re.escape(points)}{pair['verdict']}", table)


def test_every_figure_of_a_whole_study_is_there(report: str) -> None:
    found = [re.sub(r"-\d+$", "", figure.attributes["id"]) for figure in parsed(report).all("figure")]
    assert set(found) == {
        "accuracy", "differences", "front-macs", "front-latency", "cost-passes", "cost-seconds", "best-so-far",
        "convergence", "importance", "parallel", "gap", "agreement", "density", "projection", "masks", "architecture",
        "classes", "confusion",
    }  # fmt: skip


def test_figures_of_many_searches_are_parted_to_fit_a_page(made_up: MadeUp) -> None:
    arms = ["dense", "dropout", "random", "bayesian", "blockout", "thin", "blockout-soft", "confusion"]
    searched = made_up(arms=arms, seeds=2, trials=6, length=4, keep=lambda trial: not trial.is_model)
    page = parsed(render(searched))
    captions = [caption.text for caption in page.all("figcaption") if "Trials of the searches" in caption.text]
    assert [re.search(r"part \d of \d", caption)[0] for caption in captions] == ["part 1 of 2", "part 2 of 2"]
    texts = [text.text for text in page.all("text")]
    assert texts.count("accuracy (%)") == len(arms)


def test_without_a_ranking_the_reason_is_said(made_up: MadeUp) -> None:
    view = made_up(**SMALL["one arm without models"])
    page = parsed(render(view))
    reason = next(e for e in page.all("p") if e.attributes.get("class") == "reason")
    assert reason.text == f"No ranking: {view.comparison['reason']}."
    assert "there is no ranking" in page.all("caption")[0].text


def test_lost_trials_are_listed_with_their_reason(study: ReportView, report: str) -> None:
    table = next(t for t in parsed(report).all("table") if "Failed and pruned trials." in t.text)
    lost = [trial for trial in study.trials if trial.state in ("failed", "pruned")]
    assert table.text.count("loss became NaN in epoch 12") == len(lost) > 0


def test_lost_passes_are_shares_of_what_was_spent(study: ReportView, report: str) -> None:
    table = next(t for t in parsed(report).all("table") if "What each arm spent" in t.text)
    for name, arm in study.comparison["arms"].items():
        cost = {phase: arm["cost"][phase]["sample_passes"] for phase in ("search", "retrain")}
        lost = {
            state: sum(t.sample_passes for t in study.trials if (t.arm, t.phase, t.state) == (name, "search", state))
            for state in ("failed", "pruned")
        }
        whole = sum(cost.values())
        shares = [cost["search"], lost["failed"], lost["pruned"], cost["retrain"], 0]
        expected = "".join(f"{share / whole:.1%}" for share in shares).replace("%", "%\\s*")
        assert re.search(rf"{name}{whole:,}{expected}", table.text), name


def test_groups_of_classes_are_held_against_the_known_ones(made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=3, length=2, keep=lambda trial: trial.is_model)
    known = view.hierarchy["half"]

    def grouped(trial: Trial) -> Trial:
        found = trial.outcome.get("probabilities")
        if not found:
            return trial
        return replace(
            trial, result={**trial.outcome, "probabilities": {**found, "classes": [[g, 1 - g, 0, 0] for g in known]}}
        )

    page = parsed(render(replace(view, trials=[grouped(trial) for trial in view.trials])))
    table = next(t for t in page.all("table") if "Adjusted mutual information" in t.text)
    assert re.search(r"blockouthalf31\.000", table.text.replace("\n", ""))
    assert "dense" not in table.text
    without = parsed(render(replace(view, hierarchy={})))
    assert not [t for t in without.all("table") if "Adjusted mutual information" in t.text]
    assert "agreement" not in [figure.attributes["id"] for figure in without.all("figure")]


def test_images_that_only_one_arm_classifies_correctly_are_counted_and_shown(made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=3, classes=4, length=2, keep=lambda trial: trial.is_model)
    assert view.album is not None
    labels = view.album.test_labels.tolist()
    wrong = [(label + 1) % 4 for label in labels]

    def answered(trial: Trial) -> Trial:
        if not trial.is_model:
            return trial
        dense = [*labels[:5], *wrong[5:7], *labels[7:]]
        blockout = [*wrong[:5], *labels[5:]]
        once = trial.arm == "blockout" and trial.seed == 0  # one seed of three is no majority
        given = dense if trial.arm == "dense" else [*blockout[:-1], wrong[-1]] if once else blockout
        return replace(trial, result={**trial.outcome, "predictions": given})

    page = parsed(render(replace(view, trials=[answered(trial) for trial in view.trials])))
    table = next(t for t in page.all("table") if "one arm differs from all others" in t.text).text.replace("\n", "")
    assert re.search(r"dense352", table)
    assert re.search(r"blockout325", table)
    texts = [text.text for text in page.all("text")]
    assert "5 images" in texts
    assert texts.count("not 1") == 7
    caption = next(c.text for c in page.all("figcaption") if "only one arm classifies correctly" in c.text)
    assert "n = 3 seeds per arm, 144 test images" in caption


@pytest.mark.parametrize("lacking", ["album", "predictions"])
def test_without_predictions_or_images_no_unique_answers_are_shown(lacking: str, made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=2, length=2, keep=lambda trial: trial.is_model)
    trials = [replace(t, result={k: v for k, v in t.outcome.items() if k != "predictions"}) for t in view.trials]
    page = parsed(render(replace(view, album=None) if lacking == "album" else replace(view, trials=trials)))
    assert not [t for t in page.all("table") if "one arm differs from all others" in t.text]
    found = [figure.attributes["id"] for figure in page.all("figure")]
    assert "alone" not in found
    assert "confusion" in found


def routed(view: ReportView, arms: Mapping[str, int]) -> ReportView:
    """The same study with networks of three blocks: an arm's policy costs what is given, 0 for one path for all."""

    def recorded(trial: Trial) -> Trial:
        if not trial.is_model or trial.arm not in arms:
            return trial
        images, policy = len(trial.outcome["predictions"]), arms[trial.arm]
        path_of = [0 if policy == 0 or number % 4 else 1 for number in range(images)]
        paths = [[1, 0, 0], [1, 1, 1]] if policy else [[1, 0, 1]]
        found = {"paths": paths, "path_of": path_of, "policy": policy, "fixed": 40, "blocks": [20, 20, 20]}
        return replace(trial, result={**trial.outcome, "blocks": found})

    return replace(view, trials=[recorded(trial) for trial in view.trials])


def test_what_networks_that_skip_blocks_keep_is_told_and_shown(made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=2, classes=4, length=2, keep=lambda trial: trial.is_model)
    page = parsed(render(routed(view, {"blockout": 10, "dense": 0})))
    table = next(t for t in page.all("table") if "Blocks that test images keep" in t.text).text.replace("\n", "")
    assert "blockout1.50 ± 0.87 of 32, 28080.0%10.0%" in table
    assert "dense2.00 ± 0.00 of 31, 18080.0%0.0%" in table
    names = [figure.attributes["id"].rpartition("-")[0] for figure in page.all("figure")]
    assert names.count("blocks") == names.count("difficulty") == names.count("extremes") == names.count("paths") == 1
    texts = [text.text for text in page.all("text")]
    assert "75% of the images, 1 of 3 blocks" in texts
    assert "36 images keep as many as the first" in texts
    assert texts.count("3 blocks") == texts.count("1 block") == 12


@pytest.mark.parametrize("arms", [{}, {"dense": 0}])
def test_paths_that_are_the_same_for_all_images_are_not_drawn(arms: dict[str, int], made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=2, length=2, keep=lambda trial: trial.is_model)
    page = parsed(render(routed(view, arms)))
    assert bool([t for t in page.all("table") if "Blocks that test images keep" in t.text]) == bool(arms)
    assert not [figure for figure in page.all("figure") if "blocks-" in figure.attributes["id"]]


def test_blocks_without_images_have_their_histogram_alone(made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=2, length=2, keep=lambda trial: trial.is_model)
    page = parsed(render(replace(routed(view, {"blockout": 10}), album=None)))
    names = [figure.attributes["id"].rpartition("-")[0] for figure in page.all("figure")]
    assert names.count("blocks") == 1
    assert not {"difficulty", "extremes", "paths"} & set(names)


def test_the_gap_shows_what_the_clean_up_costs_and_older_studies_lack_it(made_up: MadeUp) -> None:
    view = made_up(arms=TWO, seeds=2, trials=1, length=2)
    html = render(view)
    assert "thresholded C" in html
    row = re.search(r'<tr><th scope="row">blockout</th><td>2</td>(?:<td>[\d.]+</td>){6}<td>(.+?)</td></tr>', html)
    assert row is not None
    assert row[1] == "\N{MINUS SIGN}1.00"

    def older(trial: Trial) -> Trial:
        gap = {step: accuracy for step, accuracy in (trial.outcome.get("gap") or {}).items() if step != "raw"}
        return replace(trial, result={**trial.outcome, "gap": gap}) if gap else trial

    html = render(replace(view, trials=[older(trial) for trial in view.trials]))
    assert "hard C" in html
    assert re.search(r'<tr><th scope="row">blockout</th><td>2</td>(?:<td>[\d.]+</td>){5}<td>–</td></tr>', html)


def test_hostile_names_stay_text(made_up: MadeUp) -> None:
    names = {"dense": "<script>alert(1)</script>", "blockout": "\"><img src=x onerror='alert(1)'> $x^2$ {{ 7 * 7 }}"}
    view = renamed(made_up(arms=list(names), seeds=2, classes=3), names)
    trials = [replace(t, reason="</td><script>2</script>", params={"values": {"<b>": "</table>"}}) for t in view.trials]
    study = {"question": "</p><script>3</script>", "name": "x", "note": "</pre><script>4</script>"}
    environment = {"</table>": {"<i>": "<script>5</script>"}}
    classes = ["</text><script>6</script>", "]]>", "\x00\ud800&amp;"]
    html = render(replace(view, trials=trials, study=study, environment=environment, class_names=classes))
    page = parsed(html.replace("<i>n = ", "<em>n = ").replace("</i>. Data", "</em>. Data"))
    assert [script.text for script in page.all("script")] == [REPORT_SCRIPT]
    assert not page.all("img", "i")
    table = page.all("table")[0].text
    assert all(name in table for name in names.values())
    assert "</text>" in "".join(text.text for text in page.all("text"))
    assert "</pre><script>4</script>" in page.all("pre")[0].text


@pytest.mark.slow(50)  # of the file
def test_figures_of_a_large_study_stay_small(large_report: Path) -> None:
    html = (large_report / "report" / "index.html").read_text(encoding="utf-8")
    page = parsed(html)
    check_figures(page)
    sizes = {found[1]: len(found[2]) for found in re.finditer(r'(?s)<figure id="([^"]*)".*?(<svg.*?</svg>)', html)}
    assert len(sizes) == len(page.all("figure"))
    assert {name: size for name, size in sizes.items() if size > 150_000} == {}


def test_a_comparison_of_another_version_is_refused(study: ReportView) -> None:
    with pytest.raises(ValueError, match="schema_version"):
        render(replace(study, comparison={**study.comparison, "schema_version": 3}))


def test_the_file_appears_whole(tmp_path: Path, made_up: MadeUp) -> None:
    view = made_up(**FEW)
    for _ in range(2):
        path = write(view, Folder(tmp_path))
    assert path == tmp_path / "report" / "index.html"
    assert sorted(found.name for found in path.parent.iterdir()) == ["figures", "index.html", "tables"]

    def without_files(html: str) -> str:
        return re.sub(r'<a href="[^"]*" download', "<a download", html)

    assert without_files(path.read_text(encoding="utf-8")) == without_files(render(view))


def test_every_figure_is_a_file_too(tmp_path: Path, whole_report: Path, made_up: MadeUp) -> None:
    path = Path(shutil.copytree(whole_report, tmp_path, dirs_exist_ok=True)) / "report" / "index.html"
    files = {file.name: ElementTree.parse(file).getroot() for file in (path.parent / "figures").glob("*.svg")}
    captions = [caption.text for caption in parsed(path.read_text(encoding="utf-8")).all("figcaption")]
    assert len(files) == len(captions)
    assert {"best-so-far.svg", "density-blockout.svg", "front-macs.svg"} <= set(files)
    for drawing in files.values():
        assert drawing.tag.endswith("}svg")
        assert float(drawing.attrib["width"]) > 300
        said = drawing.attrib["aria-label"]
        assert any(said.startswith(re.split(r"[.:?]", caption)[1].strip()) for caption in captions)
    write(made_up(**FEW), Folder(tmp_path))
    assert not [file for file in (path.parent / "figures").iterdir() if "blockout" in file.name], "old ones are gone"


def test_how_every_arm_was_searched_and_what_it_traded_is_told(made_up: MadeUp) -> None:
    view = made_up(arms=["dense", "random"], seeds=2, trials=6, length=4)
    comparison = json.loads(json.dumps(view.comparison))
    front = {"objectives": ["accuracy", "macs"], "trials": [{"number": 4, "values": {"accuracy": 0.875, "macs": 2e6}}]}
    comparison["arms"]["random"] |= {
        "front": {**front, "reference_point": {"accuracy": 0, "macs": 4e6}, "hypervolume": 0.4375},
        "replicates": 3,
        "infeasible": 12,
        "ended_by": "space",
    }
    study = {**view.study, "arms": {"dense": {"searcher": "grid"}, "random": {"searcher": "tpe"}}}
    page = parsed(render(replace(view, comparison=comparison, study=study)))
    states = [trial.state for trial in view.trials if (trial.arm, trial.phase) == ("random", "search")]
    counts = [str(states.count(state)) for state in ("complete", "failed", "pruned")]
    cells = [cell.text for cell in page.all("th", "td")]

    def has_row(*row: str) -> bool:
        return any(tuple(cells[at : at + len(row)]) == row for at in range(len(cells)))

    assert has_row("random", "tpe", *counts, "3", "12", "nothing left to try")
    assert has_row("random", "0.4375", "4", "accuracy 87.50%, macs 2e+06")
    assert "hypervolume" not in render(view)


def test_importing_the_report_draws_nothing() -> None:
    code = "import sys, services.report; assert not {'matplotlib', 'nas_blockout.plots'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
