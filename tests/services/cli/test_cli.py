"""Every command: what it prints, where, and the code it ends with; and that bad input changes nothing."""

import ast
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nas_blockout import __version__
from nas_blockout.settings_fields import Conflict
from services import tracking
from services.cli import lazy_modules
from services.cli import main as cli
from services.cli.console import logger
from services.cli.main import exit_code
from services.study_config.resolution import resolve_document
from tests.services.program import COMMAND, Call, store_of
from tests.services.serving import closed_port
from tests.services.tiny import TINY

EXPERIMENT = {"method": {"name": "none"}, "training": {"learning_rate": 0.1}}
VERSION_1 = Path(__file__).parents[2] / "fixtures" / "version_1" / "studies"
HOSTILE = "diverged [/red] [bold]\x1b[31m"


@pytest.fixture
def filled(home: Path) -> Path:
    """A home whose store has a study with a complete, a failed and a running trial."""
    with store_of(home) as store:
        study = resolve_document(TINY, source="here")
        store.create_study("tiny", config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        store.claim_study("tiny")
        for number, arm in enumerate(("dense", "dropout", "dropout")):
            row = store.add_trial(
                "tiny",
                arm=arm,
                phase="search",
                number=number,
                seed=number,
                experiment=EXPERIMENT,
                params={"infeasible": [{"values": {}, "distributions": {}, "exceeded": {}}] * number},
                planned=134,
            )
            store.start_attempt(row.id)
            store.record_epochs(row.id, [{"epoch": 0, "sample_passes": 50, "seconds": 1.5}])
            if number == 0:
                result = {"validation_accuracy": 0.875, "parameters": 10, "macs": 20}
                store.finish_trial(row.id, "complete", score=0.875, result=result)
            elif number == 1:
                store.finish_trial(row.id, "failed", reason=HOSTILE)
    return home


def write(folder: Path, **changes: Any) -> Path:
    path = folder.parent / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def commands(group: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    leaves = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        leaves += commands(command, (*words, name)) if inner else [((*words, name), command)]
    return leaves


ALL = commands(typer.main.get_command(cli.app))


def test_the_program_alone_says_what_it_can_do(call: Call) -> None:
    ended = call()
    assert ended.code == 2
    for (name, *_), _command in ALL:
        assert name in ended.out + ended.err


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_help_names_every_option(call: Call, words: tuple[str, ...], command: Any) -> None:
    ended = call(*words, "--help")
    assert ended.code == 0
    for parameter in command.params:
        for spelling in parameter.opts if parameter.param_type_name == "option" else [parameter.name]:
            assert spelling in ended.out
    assert len(ended.out.splitlines()) > 4
    assert call(*words, "-h").out == ended.out


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_help_has_an_example_that_can_be_called(call: Call, words: tuple[str, ...], command: Any) -> None:
    label, program, *example = shlex.split(command.epilog)
    assert (label, program, tuple(example[: len(words)])) == ("Example:", "nas-blockout", words)
    command.make_context(" ".join(words), example[len(words) :])  # raises what a user would be told
    assert command.epilog in " ".join(call(*words, "--help").out.split())


def test_the_version_is_that_of_the_package(call: Call) -> None:
    assert call("--version").out == f"nas-blockout {__version__}\n"


def test_help_imports_none_of_the_modules_that_commands_need() -> None:
    script = "import sys, services.cli.main; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) & set(lazy_modules.MODULES.values()) == set()


def test_to_list_studies_imports_no_torch(home: Path) -> None:
    """The names and questions of bundled studies are read as text: `list` takes a third of the time."""
    script = "import sys, services.cli.main as cli\ntry: cli.main(['list'])\nfinally: print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "quickstart" in run.stdout
    assert run.stdout.endswith("\nFalse\n")


def test_lazy_modules_are_those_that_the_type_checker_sees() -> None:
    tree = ast.parse(Path(lazy_modules.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {}
    for node in block.body:
        parent = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        imported |= {name.asname: parent + name.name for name in node.names}  # type: ignore[attr-defined]
    assert imported == lazy_modules.MODULES
    assert lazy_modules.yaml_reader.bundled()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lazy_modules.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("runn",), "'runn'"),
        (("run", "--no-such-option"), "--no-such-option"),
        (("run", "a", "b"), "(b)"),
        (("list", "--limit", "0"), "'--limit'"),
        (("run", "quickstart", "--workers", "none"), "'--workers'"),
        (("data",), "check"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(
    call: Call, home: Path, words: tuple[str, ...], wrong: str
) -> None:
    ended = call(*words)
    assert ended.code == 2
    assert wrong in ended.out + ended.err
    assert "nas-blockout" in ended.out + ended.err
    assert contents(home) == []


def test_run_alone_lists_the_studies(call: Call, home: Path) -> None:
    ended = call("run")
    assert ended.code == 2
    assert "quickstart" in ended.out
    assert "nas-blockout run NAME" in ended.out
    assert contents(home) == []


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"budgett": {}}, ("budgett", "no such key", "budget")),
        ({"seed": "seven"}, ("seed", "'seven'", "integer")),
        ({"backbone": {"name": "convnett"}}, ("backbone.name", "'convnett'", "did you mean 'convnet'")),
        ({"data": {"name": "digitz"}}, ("data", "digitz", "digits")),
        ({"arms": {"dense": {"method": {"name": "dropot"}}}}, ("arms.dense", "'dropot'", "dropout")),
        ({"arms": {"dense": {"match": {"arm": "thick"}}}}, ("arms.dense.match.arm", "'thick'")),
        ({"budget": {"sample_passes": 401}}, ("budget.sample_passes", "got 401", "402")),
        (
            {"arms": {"blockout": {"method": {"name": "blockout", "clusters": 9, "masked": "all"}}}},
            ("arms.blockout", "clusters", "9"),
        ),
    ],
)
def test_bad_studies_end_with_2_one_line_and_nothing_written(
    call: Call, home: Path, command: str, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = write(home, **changes)
    ended = call(command, path)
    assert ended.code == 2, ended.err
    assert ended.out == ""
    error, *notes = ended.err.splitlines()
    assert error.startswith(f"error: {path}:")
    assert all(note.startswith("note: further checks follow once these errors are fixed") for note in notes[:1])
    assert len(notes) <= 1
    for part in parts:
        assert part in error
    assert contents(home) == []


def test_all_errors_of_a_file_are_told_each_on_a_line_of_its_own(call: Call, home: Path) -> None:
    path = write(home, seed=-1, workers={"at_once": 2})
    ended = call("validate", path)
    assert (ended.code, ended.out, contents(home)) == (2, "", [])
    line = {text.partition(":")[0].strip(): number for number, text in enumerate(path.read_text().splitlines(), 1)}
    assert sorted(ended.err.splitlines()) == [
        f"error: {path}:{line['seed']}: seed: must be greater than or equal to 0, got -1",
        f"error: {path}:{line['at_once']}: workers.at_once: no such key; version 2 calls it 'max_concurrent_trials'",
    ]


def test_a_value_that_only_the_data_refuses_is_told_with_its_line(call: Call, home: Path) -> None:
    path = write(home, budget={"sample_passes": 401})
    (number,) = [n for n, text in enumerate(path.read_text().splitlines(), 1) if "sample_passes" in text]
    assert call("validate", path).err.startswith(f"error: {path}:{number}: budget.sample_passes: must be at least 402")


def test_a_file_of_version_1_is_printed_or_written_in_version_2_with_its_comments(call: Call, home: Path) -> None:
    path = home.parent / "old.yaml"
    old = (VERSION_1 / "quickstart.yaml").read_text()
    path.write_text(old)
    ended = call("validate", path, "--upgrade")
    assert (ended.code, path.read_text()) == (0, old)
    assert "upgraded to version 2" in ended.err
    assert "max_concurrent_trials: 2" in ended.out
    assert call("validate", path, "--upgrade", "--write").code == 0
    assert path.read_text() == ended.out
    assert "# few enough that the arms can differ" in path.read_text()
    again = call("validate", path, "--upgrade", "--write")
    assert (again.code, path.read_text()) == (0, ended.out)
    assert "is in version 2" in again.err
    assert contents(home) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("quickstart", "--write"),
        ("quickstart", "--upgrade", "--json"),
        (),
        ("quickstart", "--upgrade", "--write", "--set", "seed=1"),
    ],
)
def test_options_of_validate_that_do_not_go_together_are_wrong_usage(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call("validate", *arguments)
    assert (ended.code, ended.out) == (2, "")


def test_validate_prints_the_json_schema_for_editors(call: Call, home: Path) -> None:
    ended = call("validate", "--schema")
    assert (ended.code, contents(home)) == (0, [])
    assert ended.json["$defs"]["DropoutSettings"]["properties"]["rate"]["exclusiveMaximum"] == 1


def test_a_name_that_stands_twice_is_refused(call: Call, home: Path) -> None:
    path = write(home)
    path.write_text(path.read_text() + "name: again\n")
    ended = call("run", path)
    assert (ended.code, contents(home)) == (2, [])
    assert "'name' occurs twice" in ended.err


@pytest.mark.parametrize("command", ["run", "validate"])
def test_an_unknown_study_ends_with_3_and_a_near_match(call: Call, home: Path, command: str) -> None:
    ended = call(command, "quickstar")
    assert (ended.code, ended.out, contents(home)) == (3, "", [])
    assert "did you mean 'quickstart'?" in ended.err
    assert call(command, home / "none.yaml").code == 3


def test_data_that_is_not_there_ends_with_3_and_a_remedy(call: Call, home: Path) -> None:
    ended = call("run", write(home, data={"name": "cifar10"}, budget={"sample_passes": 10**6}))
    assert (ended.code, contents(home)) == (3, [])
    assert "nas-blockout data fetch cifar10" in ended.err


def test_validate_prints_the_resolved_study(call: Call, home: Path) -> None:
    path = write(home)
    ended = call("validate", path)
    assert (ended.code, contents(home)) == (0, [])
    document = yaml.safe_load(ended.out)
    assert document["arms"]["dropout"]["experiment"]["method"] == {
        "name": "dropout",
        "rate": 0.5,
        "placement": "hidden",
    }
    assert document["arms"]["dense"]["experiment"]["training"]["epochs"] == 2
    assert f"{path}: valid" in ended.err
    assert call("validate", path, "--json").json == document


def test_an_empty_store_is_said_to_be_empty(call: Call) -> None:
    ended = call("list")
    assert ended.code == 0
    assert "no studies yet" in ended.out
    assert "quickstart" in ended.out
    document = call("list", "--json").json
    assert document["studies"] == []
    assert "quickstart" in document["bundled"]


@pytest.mark.parametrize("command", ["show", "export", "sync"])
def test_what_is_not_in_the_store_ends_with_3(
    call: Call, home: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_BLOCKOUT_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    ended = call(command, "quickstart")
    assert (ended.code, ended.out) == (3, "")
    assert "there is no study 'quickstart' in the store" in ended.err


def test_a_stored_study_is_listed(call: Call, filled: Path) -> None:
    ended = call("list")
    assert ended.code == 0
    assert "tiny" in ended.out
    assert "running" in ended.out
    (line,) = call("list", "--json").json["studies"]
    assert (line["name"], line["state"], line["finished_at"]) == ("tiny", "running", None)


def test_a_stored_study_is_shown(call: Call, filled: Path) -> None:
    ended = call("show", "tiny")
    assert ended.code == 0
    assert "study tiny: running" in ended.out
    for part in ("87.50%", "complete", "failed", "diverged [/red] [bold]", "cost", "50.0%"):
        assert part in ended.out
    assert "dense: search ended by" in ended.out
    assert "dropout: search has not ended; 3 proposals exceeded a constraint (they cost nothing)" in ended.out
    assert "\x1b" not in ended.out


def test_only_the_latest_trials_of_a_long_study_are_listed(call: Call, filled: Path) -> None:
    document = call("show", "tiny", "--json", "--limit", "1").json
    assert ([trial["state"] for trial in document["trials"]], document["trials_left_out"]) == (["running"], 2)
    assert document["proposed"]["dropout"]["infeasible"] == 3
    assert "1 earlier trial not listed: `--limit 0` lists all" in call("show", "tiny", "--limit", "2").out
    assert "trials_left_out" not in call("show", "tiny", "--json", "--limit", "0").json


def test_a_stored_study_is_shown_to_programs(call: Call, filled: Path) -> None:
    trials = call("show", "tiny", "--json").json["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "failed", "running"]
    assert trials[0]["validation_accuracy"] == 0.875
    document = call("show", "tiny", "--failed", "--json").json
    (failed,) = document["trials"]
    assert failed["reason"] == HOSTILE
    assert document["proposed"]["dropout"] == {"replicates": 0, "infeasible": 3}
    assert document["ended_by"] == {"dense": "sample_passes", "dropout": None}
    costs = {cost["arm"]: cost for cost in document["cost"]}
    assert costs["dropout"]["trials"] == 2
    assert (costs["dropout"]["failed"], costs["dropout"]["failed_sample_passes"]) == (1, 50)
    assert (costs["dropout"]["sample_passes"], costs["dropout"]["pruned_sample_passes"]) == (100, 0)


def test_a_misspelt_stored_study_has_a_near_match(call: Call, filled: Path) -> None:
    ended = call("show", "tini")
    assert ended.code == 3
    assert "did you mean 'tiny'?" in ended.err


def test_another_study_of_the_same_name_is_refused(call: Call, filled: Path) -> None:
    ended = call("run", write(filled, seed=1))
    assert ended.code == 2
    assert "study 'tiny' is in the store with another seed: 0 there, 1 here" in ended.err


def test_keys_of_a_study_are_set_on_the_command_line(call: Call, home: Path) -> None:
    path = write(home)
    document = call(
        "validate", path, "--set", "retrain.seeds=[4, 5]", "--set", "budget.sample_passes=536", "--json"
    ).json
    assert (document["retrain"]["seeds"], document["budget"]["sample_passes"]) == ([4, 5], 536)
    ended = call("run", path, "--set", "budget.sample_pases=400")
    assert (ended.code, ended.out, contents(home)) == (2, "", [])
    assert "budget.sample_pases: no such key; did you mean 'sample_passes'?" in ended.err
    assert call("run", path, "--set", "seed").code == 2


def test_a_study_that_has_not_finished_is_not_exported(call: Call, filled: Path) -> None:
    ended = call("export", "tiny", "dense")
    assert (ended.code, ended.out) == (3, "")
    assert "no retrained model of an arm 'dense'" in ended.err
    refused = call("export", "tiny", "dense", "--batch", "0")
    assert (refused.code, refused.out) == (2, "")
    assert "--batch" in refused.err


def test_an_mlflow_that_refuses_is_not_said_to_be_unreachable() -> None:
    assert exit_code(tracking.TrackingUnreachable("MLflow does not answer")) == 5
    assert exit_code(tracking.TrackingError("MLflow refuses access")) == 1


def test_settings_that_do_not_go_together_are_an_error_of_usage_wherever_they_are_found() -> None:
    assert exit_code(Conflict("there is no file net.py", "backbone.factory")) == 2


@pytest.mark.parametrize("quiet", [True, False])
def test_warnings_survive_quiet_and_are_said_once(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    tell = logger(quiet=quiet)
    for text in ("writing to MLflow", "warning: MLflow refuses access", "warning: MLflow refuses access"):
        tell(text)
    assert capsys.readouterr().err.splitlines() == [
        *([] if quiet else ["writing to MLflow"]),
        "warning: MLflow refuses access",
    ]


def test_sync_without_mlflow_ends_with_5(call: Call, filled: Path) -> None:
    ended = call("sync", "tiny")
    assert ended.code == 5
    assert "NAS_BLOCKOUT_TRACKING_URI" in ended.err


def test_a_missing_model_ends_with_3(call: Call, home: Path) -> None:
    ended = call("verify", home / "nothing")
    assert (ended.code, ended.out) == (3, "")
    assert str(home / "nothing") in ended.err


def test_a_database_that_does_not_answer_ends_with_5_and_keeps_its_password(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_port()
    url = f"postgresql+psycopg://someone:hunter2hunter2@127.0.0.1:{port}/nas"
    monkeypatch.setenv("NAS_BLOCKOUT_STORE_URL", url)
    for words in (("list",), ("run", write(home))):
        ended = call(*words)
        assert ended.code == 5, ended.err
        assert "hunter2" not in ended.err
        assert f"someone:***@127.0.0.1:{port}" in ended.err
        assert ended.err.count("\n") == 1


def test_a_file_that_is_no_store_ends_with_1(call: Call, home: Path) -> None:
    (home / "runs").mkdir()
    (home / "runs" / "nas_blockout.db").write_text("this is no database\n" * 100)
    ended = call("list")
    assert ended.code == 1
    assert "nas_blockout.db" in ended.err


@pytest.mark.parametrize(
    ("name", "value", "safe_text"),
    [
        ("NAS_BLOCKOUT_STORE", "x", "did you mean 'NAS_BLOCKOUT_STORE_URL'?"),
        ("NAS_BLOCKOUT_STORE_URL", "mysql://me:hunter2@host/db", "mysql://me:***@host/db"),
    ],
)
def test_settings_that_cannot_be_used_end_with_2(
    call: Call, monkeypatch: pytest.MonkeyPatch, name: str, value: str, safe_text: str
) -> None:
    monkeypatch.setenv(name, value)
    ended = call("list")
    assert ended.code == 2
    assert safe_text in ended.err
    assert "hunter2" not in ended.err


def test_what_nobody_foresaw_is_one_line_too(call: Call, home: Path) -> None:
    path = write(home)
    path.unlink()
    path.mkdir()
    ended = call("validate", path)
    assert ended.code in (1, 3)
    assert ended.err.count("\n") == 1


def test_doctor_finds_an_installation_well(call: Call, home: Path) -> None:
    ended = call("doctor")
    assert ended.code == 0, ended.out
    assert "BAD" not in ended.out
    findings = call("doctor", "--json").json
    assert {"Python", "torch", "ray", "folder of studies", "store", "MLflow", "Ray", "data"} <= {
        finding["what"] for finding in findings
    }
    assert all(finding["ok"] and not finding["remedy"] for finding in findings)


def test_doctor_says_how_to_mend_what_does_not_answer(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("NAS_BLOCKOUT_RAY_ADDRESS", f"ray://127.0.0.1:{port}")
    ended = call("doctor")
    assert ended.code == 5
    assert f"BAD  Ray: Ray cannot be reached at ray://127.0.0.1:{port}" in ended.out
    assert "NAS_BLOCKOUT_RAY_ADDRESS" in ended.out


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_a_command_whose_streams_are_closed_does_its_work(home: Path, closed: str) -> None:
    """Without a stream Python's is None, and the database would be the file that output goes to."""
    ended = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "list"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "rror" not in ended.stderr
    with store_of(home) as store:
        assert store.identity
