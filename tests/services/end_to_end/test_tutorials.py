"""Every command of the tutorials, as their reader runs it, and the output that they show, apart from its numbers."""

from pathlib import Path

import pytest
import torch

from tests.services.end_to_end.tutorial import TUTORIALS, environment_of, follow, missing, steps

pytestmark = [pytest.mark.slow(200), pytest.mark.timeout(1800)]

FIRST = "first-study"
GOES_ON = ("reading-a-comparison", "deploying-a-model")  # in the folder of the first study
ALONE = sorted({path.stem for path in TUTORIALS.glob("*.md")} - {"index", FIRST, *GOES_ON})


def followed(name: str, folder: Path) -> None:
    """Follow a tutorial in a folder.

    Raises:
        AssertionError: A command failed, or did not write what the page shows.
    """
    environment = environment_of(folder)
    for step in steps(TUTORIALS / f"{name}.md"):
        if step.condition == "no card" and torch.cuda.is_available():
            continue
        written = follow(step, folder, environment)
        assert missing(step, written) == [], f"{name}.md shows what was not written by\n{step.text}\n{written}"


@pytest.mark.end_to_end
def test_the_first_study_and_what_goes_on_with_it(tmp_path: Path) -> None:
    for name in (FIRST, *GOES_ON):
        followed(name, tmp_path)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ALONE)
def test_a_tutorial_does_what_it_says(name: str, tmp_path: Path) -> None:
    followed(name, tmp_path)
