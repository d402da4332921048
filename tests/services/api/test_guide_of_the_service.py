"""The commands of the guide, in its order, against a real service."""

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from services.api import application
from services.api.health import Probes
from services.store import Store

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "service.md"


def blocks() -> list[str]:
    found = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in found if "curl" in block]


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


def end_when_followed(store: Store, followed: threading.Event) -> None:
    assert followed.wait(60)
    store.acquire_lease("test", seconds=600)
    store.finish_queued("hello", "test", "cancelled", message="enough")


def test_every_command_of_the_guide_does_what_it_says(settings, store, served, tmp_path):
    curl = shutil.which("curl") or pytest.skip("needs curl")
    address = served(application(settings, store, probes=Probes({})))
    token = store.create_token("guide", owner="ann", scope="write")[1]
    environment = {"PATH": f"{Path(curl).parent}:/usr/bin:/bin", "SERVICE": address, "TOKEN": token}
    followed, said = threading.Event(), []
    worker = threading.Thread(target=end_when_followed, args=(store, followed), daemon=True)
    worker.start()
    for block in blocks():
        if "/events" in block:
            followed.set()
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    worker.join()
    assert len(said) == 4
    assert '"name":"hello","state":"queued"' in said[0]
    assert "event: end" in said[1]
    assert '"message":"enough"' in said[1].replace(" ", "")
    assert said[2] == "trial\n[]"
    assert store.queued_study("hello").document["retrain"]["seeds"] == [0, 1, 2]
    assert store.queued_study("hello").state == "queued"
