"""The wheel, built from the sdist and installed where the source cannot be seen."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)


def call(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    result = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    if importlib.util.find_spec("hatchling") is None:
        if os.environ.get("CI"):
            pytest.fail("hatchling is not installed")
        pytest.skip("hatchling is not installed")
    place = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place, cwd=ROOT)
    (archive,) = place.glob("*.tar.gz")
    call("tar", "-xf", archive, cwd=place)  # tarfile's safe filter came with Python 3.11.4 only
    return place / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    call(*pip, "--no-build-isolation", "-w", place, source, cwd=place)
    (found,) = place.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs code in a new environment that has the wheel; its dependencies are borrowed from this one."""
    place = tmp_path_factory.mktemp("venv")
    call(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    executable = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(executable)]
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place)
    (packages,) = place.glob("lib/python*/site-packages")
    # A path that a .pth file adds is searched last, and .pth files in it (an editable install's) are not read.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return lambda code: call(executable, "-I", "-c", code, cwd=place).strip()


def shipped(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for package in (folder / "clusterports", *folder.glob("backends/*"))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_sdist_is_complete(source: Path) -> None:
    """Whoever has the sdist can test, check and build."""
    expected = {"LICENSE", "Makefile", "README.md", "pyproject.toml", ".ci/run", ".ci/unasync.py"}
    assert sorted(name for name in expected if not (source / name).is_file()) == []
    assert shipped(source) == shipped(ROOT)
    assert (source / "tests" / "checks" / Path(__file__).name).is_file()


def test_wheel_holds_the_packages_and_nothing_else(source: Path, wheel: Path) -> None:
    """The wheel is the packages with their Lua files and type markers."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name.removeprefix("backends/") for name in shipped(source)}
    assert {"clusterports/py.typed", "clusterports_redis/py.typed", "clusterports_memory/py.typed"} <= names
    assert [name for name in names if name.startswith("clusterports_redis/lua/") and name.endswith(".lua")] != []


def test_wheel_works_without_the_source(python: Callable[[str], str]) -> None:
    """The installed wheel allocates a port, and nothing is imported from the checkout."""
    code = """
import clusterports, clusterports_memory
with clusterports.PortAllocator("memory://", probe=False) as ports, ports.acquire("backup") as port:
    print(int(port), clusterports.__file__, clusterports_memory.__file__, sep="\\n")
"""
    number, *files = python(code).splitlines()
    assert number == "10809"
    assert [name for name in files if Path(name).is_relative_to(ROOT)] == []


def test_entry_points(python: Callable[[str], str]) -> None:
    """Every scheme finds a driver that can connect, and the command is there."""
    code = """
from importlib.metadata import entry_points
for point in entry_points(group="clusterports.backends"):
    driver = point.load()
    assert driver.connect and driver.connect_async
    print(point.name, driver.__name__)
print(*(point.load().__name__ for point in entry_points(group="console_scripts", name="clusterports")))
"""
    assert python(code).splitlines() == [
        "memory clusterports_memory",
        "redis clusterports_redis",
        "redis+cluster clusterports_redis",
        "redis+sentinel clusterports_redis",
        "rediss clusterports_redis",
        "rediss+cluster clusterports_redis",
        "rediss+sentinel clusterports_redis",
        "sqlite clusterports_sqlite",
        "unix clusterports_redis",
        "valkey clusterports_redis",
        "valkey+cluster clusterports_redis",
        "valkey+sentinel clusterports_redis",
        "valkey+unix clusterports_redis",
        "valkeys clusterports_redis",
        "valkeys+cluster clusterports_redis",
        "valkeys+sentinel clusterports_redis",
        "main",
    ]


def test_lua_is_found(python: Callable[[str], str]) -> None:
    """The Redis backend finds its scripts in the installed package."""
    code = """
from importlib.resources import files
print(*sorted(item.name for item in files("clusterports_redis").joinpath("lua").iterdir()))
"""
    lua = (ROOT / "backends" / "clusterports_redis" / "lua").glob("*.lua")
    assert python(code).split() == sorted(path.name for path in lua)
