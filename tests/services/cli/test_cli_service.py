"""The commands of the service: tokens are shown once, tables go up and down, nothing starts without its secret."""

import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import migrations
from tests.services.program import COMMAND, store_of
from tests.services.serving import ROOT_TOKEN


def test_a_token_is_shown_once_listed_without_its_secret_and_revoked(call, home):
    code, secret, err = call("token", "create", "--owner", "ann", "--scope", "write", "--expires-days", "7")
    assert code == 0
    assert re.fullmatch(r"nab_\S+\n", secret)
    assert "token 1 for ann, scope write; the secret is shown only once" in err
    with store_of(home) as store:
        assert store.token(secret.strip()).owner == "ann"
    for words in (("token", "list"), ("token", "list", "--json")):
        code, listed, _ = call(*words)
        assert code == 0
        assert "ann" in listed
        assert "valid" in listed
        assert "nab_" not in listed
    assert call("token", "revoke", "1")[:2] == (0, "token 1 of ann is revoked\n")
    assert json.loads(call("token", "list", "--owner", "ann", "--json")[1])[0]["state"] == "revoked"
    code, _, err = call("token", "revoke", "9")
    assert (code, err) == (3, "error: there is no token 9; `nas-blockout token list` lists them\n")


def test_a_token_that_breaks_a_rule_is_not_made(call):
    code, _, err = call("token", "create", "--owner", "no body")
    assert (code, "got 'no body'" in err) == (2, True)
    assert call("token", "create", "--owner", "ann", "--scope", "root")[0] == 2
    assert call("token", "create", "--owner", "ann", "--expires-days", "0")[0] == 2
    assert call("token", "list")[1].startswith("There are no tokens")


def test_tables_go_up_and_down(call):
    assert call("db", "current")[1] == f"no tables; this release uses {migrations.HEAD}\n"
    assert call("db", "upgrade")[1] == f"the database has schema version {migrations.HEAD}\n"
    code, _, err = call("db", "downgrade", "0001")
    assert (code, "then add --yes" in err) == (2, True)
    assert call("db", "downgrade", "0001", "--yes")[0] == 0
    assert json.loads(call("db", "current", "--json")[1]) == {"version": "0001", "newest": migrations.HEAD}
    assert call("db", "downgrade", "0009", "--yes")[0] == 1


@pytest.mark.parametrize("token", [None, "", "short", "change-me-before-use-0123"])
def test_the_api_does_not_start_without_a_good_secret(call, monkeypatch, token):
    if token is not None:
        monkeypatch.setenv("NAS_BLOCKOUT_API_TOKEN", token)
    code, _, err = call("serve", "api")
    assert code == 2
    assert "NAS_BLOCKOUT_API_TOKEN" in err
    assert "make one: python -c" in err


def test_the_worker_does_not_start_without_a_cluster(call):
    code, _, err = call("serve", "worker")
    assert (code, "NAS_BLOCKOUT_JOBS_ADDRESS" in err) == (2, True)


@pytest.fixture
def server(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """The API as a user starts it, on a free port."""
    command = [*COMMAND, "serve", "--port", "0"]
    environment = {**os.environ, "NAS_BLOCKOUT_API_TOKEN": ROOT_TOKEN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


def test_the_api_serves_until_it_is_terminated(server):
    first_line = server.stderr.readline()
    address = re.match(r"(http://127\.0\.0\.1:\d+)/ serves the studies of sqlite:///", first_line)[1]
    with urllib.request.urlopen(address + "/healthz", timeout=60) as answer:
        assert answer.read() == b'{"status":"ok"}'
        assert "server" not in {name.lower() for name in answer.headers}
    server.terminate()
    assert server.wait(timeout=60) == 143
    assert ROOT_TOKEN not in first_line + server.stderr.read()


def test_an_address_that_is_taken_is_named(call, monkeypatch):
    monkeypatch.setenv("NAS_BLOCKOUT_API_TOKEN", ROOT_TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = call("serve", "--port", port)
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --host or --port" in err
