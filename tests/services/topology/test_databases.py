"""services/databases.sql: two databases that do not know each other, made once, with the passwords that it is told."""

import subprocess

import pytest

from tests.services.topology.compose import ROOT

SQL = ROOT / "services" / "databases.sql"
ROLES = ("nas_blockout", "mlflow")


@pytest.fixture
def made(postgres):
    """Runs the file with two passwords; takes away at the end what it has made."""

    def run(store: str, mlflow: str) -> dict[str, str]:
        postgres.connect().close()  # waits for a server that has just been started
        programs = (postgres.programs / "initdb").resolve().parent
        command = [programs / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={SQL}"]
        done = subprocess.run(
            [*command, f"--host={postgres.folder}", "--username=tester", "postgres"],
            env={"STORE_PASSWORD": store, "MLFLOW_PASSWORD": mlflow, "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert store not in done.stdout + done.stderr
        with postgres.connect() as connection:
            return dict(connection.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL"))

    yield run
    for role in ROLES:
        postgres.execute(postgres.url("postgres"), f"DROP DATABASE IF EXISTS {role}")
        postgres.execute(postgres.url("postgres"), f"DROP ROLE IF EXISTS {role}")


def test_it_may_run_again_and_then_sets_the_passwords(postgres, made) -> None:
    first = made("one", "two")
    assert set(first) == set(ROLES)
    again = made("one'; DROP TABLE x; --", "two")
    assert all(again[role].startswith("SCRAM-SHA-256$") for role in ROLES)
    assert again["nas_blockout"] != first["nas_blockout"]
    with postgres.connect() as connection:
        query = "SELECT d.datname, r.rolname, r.rolsuper FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba"
        rows = connection.execute(query).fetchall()
    assert {(role, role, False) for role in ROLES} <= set(rows)


@pytest.mark.parametrize(("role", "other"), [ROLES, ROLES[::-1]])
def test_a_role_cannot_enter_the_database_of_the_other(postgres, made, role: str, other: str) -> None:
    made("one", "two")
    with postgres.connect() as connection:
        allowed = connection.execute(
            "SELECT has_database_privilege(%s, %s, 'CONNECT'), has_database_privilege(%s, %s, 'CONNECT')",
            (role, role, role, other),
        ).fetchone()
    assert allowed == (True, False)
