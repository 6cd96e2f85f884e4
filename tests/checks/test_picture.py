"""The picture of the README, and the script that draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ".github/status.svg"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (".ci/picture.py", PICTURE):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def picture(tree: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(tree / ".ci/picture.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def test_up_to_date(tree: Path) -> None:
    """What is checked in is what the script draws from what the command prints today; make it by ``make generate``."""
    assert (0, "") == picture(tree, "--check")


def test_differences_are_found(tree: Path) -> None:
    """A picture that was changed by hand is a fault, checking mends nothing, and drawing does."""
    (tree / PICTURE).write_text("<svg/>")

    assert (1, f"{PICTURE}: differs from what .ci/picture.py draws\n") == picture(tree, "--check")
    assert "<svg/>" == (tree / PICTURE).read_text()
    assert (0, f"wrote {PICTURE}\n") == picture(tree)
    assert (ROOT / PICTURE).read_text() == (tree / PICTURE).read_text()


def test_self_contained() -> None:
    """It is well-formed, is shown by the README, and fetches nothing: no font, no style, no image, no script."""
    text = (ROOT / PICTURE).read_text(encoding="utf-8")
    names = {str(element.tag).rpartition("}")[2] for element in ET.fromstring(text).iter()}  # noqa: S314 - ours

    assert {"svg", "title", "style", "rect", "circle", "text", "tspan"} == names
    assert ["http://www.w3.org/2000/svg"] == re.findall(r"\w+://[^\"]*", text)
    assert [] == re.findall(r"url\(|@import|href", text)
    assert f"]({PICTURE})" in (ROOT / "README.md").read_text(encoding="utf-8")
