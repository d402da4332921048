"""Settings come from the environment, are refused with a reason, and never show a secret."""

from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.secret_files import secret
from services.settings import Settings, SettingsError, SignInSettings, masked, sqlite_path, variables
from services.store import Store

TOKEN = "q7Rz_0vLw2-Xb9TnYd4K"


def read(**values: str) -> Settings:
    return Settings.from_environment({f"NAS_BLOCKOUT_{name.upper()}": value for name, value in values.items()})


def test_everything_lies_under_the_current_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read()
    assert found.home == tmp_path
    assert found.folder("quickstart") == tmp_path / "runs" / "quickstart"
    assert found.store_url == f"sqlite:///{tmp_path}/runs/nas_blockout.db"
    assert found.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert (found.data, found.ray_address, found.api_token) == (None, None, None)


def test_the_environment_of_the_process_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(tmp_path))
    assert Settings.from_environment().home == tmp_path


def test_values_are_taken_as_given(tmp_path):
    url = "postgresql+psycopg://nas:hunter22@db.example/nas"
    tracking = "http://mlflow:5000"
    found = read(
        home=f" {tmp_path} ",
        store_url=url,
        tracking_uri=tracking,
        data=str(tmp_path),
        artifacts=" s3://bucket/studies/ ",
        ray_address="auto",
        jobs_address="http://ray-head:8265/",
        api_token=TOKEN,
    )
    assert found == Settings(
        tmp_path, url, tracking, tmp_path, "s3://bucket/studies", "auto", "http://ray-head:8265", TOKEN
    )
    assert found.artifacts == "s3://bucket/studies"
    assert read(artifacts="/shared/").artifacts == "file:///shared"
    assert read().artifacts is None


def test_databases_follow_the_home_folder(tmp_path):
    home = tmp_path / "a home, 100%"
    assert read(home=str(home)).store_url == f"sqlite:///{home}25/runs/nas_blockout.db"
    assert read(home=str(home)).tracking_uri == f"sqlite:///{home}25/runs/mlflow.db"


@pytest.mark.parametrize("variable", ["store_url", "tracking_uri"])
def test_a_relative_database_file_is_anchored_where_it_was_named(variable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert getattr(read(**{variable: "sqlite:///mine.db"}), variable) == f"sqlite:///{tmp_path}/mine.db"


@pytest.mark.parametrize("text", ["", "none", " NONE "])
def test_mlflow_can_be_turned_off(text):
    assert read(tracking_uri=text).tracking_uri is None


@pytest.mark.parametrize("variable", ["home", "store_url", "data", "ray_address", "api_token"])
def test_an_empty_variable_is_one_that_is_not_set(variable):
    assert read(**{variable: ""}) == read()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "store_url",
            "runs/store.db",
            r"STORE_URL must begin with sqlite:/// .* got 'runs/store.db'; for a SQLite file",
        ),
        ("store_url", "mysql://root:hunter22@h/x", r"must begin with .* got 'mysql://root:\*\*\*@h/x'"),
        ("store_url", "sqlite://", r"STORE_URL must name a file"),
        ("store_url", "sqlite:///:memory:", r"STORE_URL must name a file"),
        ("tracking_uri", "mlflow.db", r"TRACKING_URI must be a URI .* got 'mlflow.db'; none turns MLflow off"),
        ("data", "a\0b", r"DATA: a path must not contain NUL"),
        ("hoem", "x", r"NAS_BLOCKOUT_HOEM: unknown variable; did you mean 'NAS_BLOCKOUT_HOME'\?"),
        ("api_token", "short", r"API_TOKEN must be 16 characters or more that nobody can guess, got 5 characters"),
        ("api_token", "a" * 40, r"nobody can guess"),
        ("api_token", "change-me-before-use-0123", r"nobody can guess"),
        ("api_rate", "0", r"API_RATE must be a whole number in \[1, 1000000000\], got '0'"),
        ("api_rate", "1.5", r"whole number"),
        ("api_rate", "\u0663", r"whole number"),
        ("api_body_bytes", "9" * 50, r"API_BODY_BYTES must be a whole number"),
        ("api_open_studies", "-1", r"API_OPEN_STUDIES must be"),
        ("owner_trials", "0", r"OWNER_TRIALS must be a whole number in \[1, "),
        ("owner_gigabytes", "much", r"OWNER_GIGABYTES must be a whole number in \[1, "),
        ("owner_shares", "ann", r"OWNER_SHARES must be owners with positive numbers, .*, got 'ann'"),
        ("owner_shares", "ann=0", r"OWNER_SHARES must be .*, got 'ann=0'"),
        ("owner_shares", "ann=1,bob=2,ann=3", r"OWNER_SHARES must be .* each owner once, .*, got 'ann=3'"),
        ("mlflow_url", "mlflow:5000", r"MLFLOW_URL must be a URL such as http://127.0.0.1:5000"),
        ("ray_url", "https://me:hunter22@ray", r"RAY_URL must be a URL .* got 'https://me:\*\*\*@ray'"),
        ("ray_url", "javascript:alert(1)", r"RAY_URL must be a URL"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_value_rule_and_remedy(variable, value, message):
    with pytest.raises(SettingsError, match=message) as caught:
        read(**{variable: value})
    assert "hunter22" not in str(caught.value)
    assert variable != "api_token" or value not in str(caught.value)


def test_limits_and_pages_are_taken_as_given():
    found = read(api_body_bytes="1000", api_rate=" 5 ", api_open_studies="1", mlflow_url="https://mlflow/x/")
    assert (found.api_body_bytes, found.api_rate, found.api_open_studies) == (1000, 5, 1)
    assert (found.mlflow_url, found.ray_url) == ("https://mlflow/x", None)


def test_a_file_is_no_home(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="NAS_BLOCKOUT_HOME must be a folder, got the file"):
        read(home=str(tmp_path / "file"))


def test_the_text_of_settings_shows_no_secret():
    found = read(
        store_url="postgresql://nas:hunter22@h/x",
        tracking_uri="https://me:hunter23@mlflow/?token=hunter24",
        api_token=TOKEN,
    )
    for text in (repr(found), str(found), f"{found}"):
        assert "nas:***@h" in text
        assert not any(secret in text for secret in ("hunter22", "hunter23", "hunter24", TOKEN))


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=3).filter(lambda text: "*" not in text))
def test_no_password_survives_masking(password):
    shown = masked(f"postgresql://user:<{password}>@host/name")
    assert shown == "postgresql://user:***@host/name"


def test_a_url_without_a_password_is_shown_as_it_is():
    for url in ("sqlite:////home/me/runs/x.db", "http://127.0.0.1:5000", "postgresql://host/name?host=%2Ftmp"):
        assert masked(url) == url


def test_every_setting_is_documented():
    names = [variable.name for variable in variables()]
    own = [f"NAS_BLOCKOUT_{name.upper()}" for name in Settings.__slots__ if name != "sign_in"]
    assert names == [*own, *(f"NAS_BLOCKOUT_OIDC_{name.upper()}" for name in SignInSettings.__slots__)]
    assert all(variable.description.endswith(".") and variable.default for variable in variables())


def test_what_submitted_studies_may_run_is_nothing_until_it_is_said(tmp_path):
    assert (read().factories, read().weights) == ((), None)
    assert not read().allows_factory("torchvision.models:resnet18")
    found = read(factories=" torchvision.models:*, mine.nets:net ,", weights=str(tmp_path))
    assert found.factories == ("torchvision.models:*", "mine.nets:net")
    assert found.allows_factory("torchvision.models:resnet18")
    assert found.allows_weights(str(tmp_path / "w.safetensors"))
    assert not read().allows_weights(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    "patterns", ["torchvision.models", "*", "a:b:c", "nets.py:", "./nets.py:net", "a b:c", "a:[bc]"]
)
def test_patterns_of_factories_have_a_module_and_a_name(patterns):
    with pytest.raises(
        SettingsError, match=r"NAS_BLOCKOUT_FACTORIES must be patterns such as torchvision\.models:\*, sep"
    ):
        read(factories=f"good.nets:*,{patterns}")


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "100%", "a&b=c", "\u00fc"])
def test_a_home_of_any_name_holds_its_databases(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    found = read(home=str(home))
    for url, file in ((found.store_url, "nas_blockout.db"), (found.tracking_uri, "mlflow.db")):
        assert url is not None
        assert sqlite_path(url) == Path(sqlalchemy.make_url(url).database or "") == home / "runs" / file
    Store.open(found.store_url).close()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.db")] == [
        f"{name}/runs/nas_blockout.db"
    ]


def test_owners_share_equally_and_without_limits_unless_told_otherwise():
    found = read(owner_trials="", owner_shares=" ")
    assert (found.running_studies, found.turn_minutes, found.owner_shares) == (4, 10, ())
    assert (found.owner_trials, found.owner_gpu_hours, found.owner_gigabytes) == (None, None, None)
    found = read(running_studies="9", owner_shares="ann=2, bob=0.5", owner_trials="6", owner_gpu_hours="7")
    assert (found.running_studies, found.owner_trials, found.owner_gpu_hours) == (9, 6, 7)
    assert found.owner_shares == (("ann", 2.0), ("bob", 0.5))


def test_every_setting_may_be_in_a_file(tmp_path):
    token, url, missing = tmp_path / "token", tmp_path / "url", tmp_path / "missing"
    token.write_text(f"{TOKEN}\n", encoding="utf-8")
    url.write_text("postgresql+psycopg://nas:hunter22@db.example/nas", encoding="utf-8")
    found = read(api_token_file=str(token), store_url_file=str(url))
    assert (found.api_token, found.store_url) == (TOKEN, "postgresql+psycopg://nas:hunter22@db.example/nas")
    assert read(api_token_file=" ", api_token=TOKEN).api_token == TOKEN
    with pytest.raises(SettingsError, match="API_TOKEN and NAS_BLOCKOUT_API_TOKEN_FILE are both set; keep one"):
        read(api_token_file=str(token), api_token=TOKEN)
    with pytest.raises(SettingsError, match=r"API_TOKEN_FILE: .*/missing cannot be read: No such file.*; name a"):
        read(api_token_file=str(missing))
    with pytest.raises(SettingsError, match="NAS_BLOCKOUT_API_TOKN_FILE: unknown variable"):
        read(api_tokn_file=str(token))
    for content, reason in ((b"\xff", "must be text in UTF-8"), (b"x" * 65_537, "more than 65536 bytes")):
        token.write_bytes(content)
        with pytest.raises(SettingsError, match=reason):
            read(api_token_file=str(token))


def test_a_secret_of_another_program_may_be_in_a_file(tmp_path, monkeypatch):
    path = tmp_path / "password"
    path.write_text("hunter22\n", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD_FILE", str(path))
    assert (secret("MLFLOW_TRACKING_USERNAME"), secret("MLFLOW_TRACKING_PASSWORD")) == ("ann", "hunter22")
    assert secret("MLFLOW_TRACKING_TOKEN") is None


def test_days_have_a_bound():
    found = read(retention_days="30", delete_grace_days="14", audit_days="90")
    assert (found.retention_days, found.delete_grace_days, found.audit_days) == (30, 14, 90)
    assert (read().retention_days, read().delete_grace_days, read().audit_days) == (None, 7, 365)
    with pytest.raises(SettingsError, match=r"RETENTION_DAYS must be a whole number in \[1, 36500\], got '36501'"):
        read(retention_days="36501")


def test_plugins_are_allowed_by_names_and_patterns():
    assert read().plugins == ()
    assert read(plugins=" small_net, our_nets.*:* ,").plugins == ("small_net", "our_nets.*:*")
    with pytest.raises(SettingsError, match=r"NAS_BLOCKOUT_PLUGINS must be names and patterns such as small_net or"):
        read(plugins="small_net,./nets.py:net")
