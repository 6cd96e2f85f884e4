"""Where the ports of those are kept who configured no store."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from clusterports._default_store import default_url
from clusterports.errors import ConfigurationError
from clusterports.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

ROOT, USER = 0, 1000


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/var/u")
    monkeypatch.setattr(os, "geteuid", lambda: USER)


def test_user() -> None:
    """A user's ports are in the user's state directory."""
    assert "sqlite:////var/u/.local/state/clusterports/ports.db" == default_url()


def test_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert "sqlite:////state/clusterports/ports.db" == default_url()


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's are those of the system, whatever home it came with."""
    monkeypatch.setattr(os, "geteuid", lambda: ROOT)
    monkeypatch.setenv("XDG_STATE_HOME", "/var/u/state")

    assert "sqlite:////var/lib/clusterports/ports.db" == default_url()


@pytest.mark.parametrize("uid", [ROOT, USER])
@pytest.mark.parametrize("text", ["/var/lib/ports", "/var/lib/ports:/var/lib/more"])
def test_service(uid: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's are in the first directory that systemd gave it."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("STATE_DIRECTORY", text)

    assert "sqlite:////var/lib/ports/ports.db" == default_url()


@pytest.mark.parametrize("text", ["", "ports", ":/var/lib/ports"])
def test_no_directory_of_a_service(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but an absolute path is somebody else's variable."""
    monkeypatch.setenv("STATE_DIRECTORY", text)

    assert "sqlite:////var/u/.local/state/clusterports/ports.db" == default_url()


def test_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that mean something in a URL are quoted, and it is one that the settings take."""
    monkeypatch.setenv("STATE_DIRECTORY", "/a b/%41?#ä\udcff\n")
    url = default_url()

    assert "sqlite:////a%20b/%2541%3F%23%C3%A4%FF%0A/ports.db" == url
    assert url == Settings(url=url).url
    assert "/a b/%41?#ä\udcff\n/ports.db" == unquote(url.removeprefix("sqlite:///"), errors="surrogateescape")


@pytest.mark.parametrize(("home", "shown"), [("", "no HOME"), ("u", "HOME is 'u'"), ("\x1b", "HOME is '\\x1b'")])
def test_no_home(home: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no home, neither in the environment nor in the list of users, has to say where."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ConfigurationError) as caught:
        default_url()

    assert (
        f"url: there is no home directory to keep the ports in ({shown}); give --url sqlite:////DIRECTORY/ports.db, "
        "or set CLUSTERPORTS_URL, or url in clusterports.toml"
    ) == str(caught.value)


def test_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for the URL leaves no trace."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert f"sqlite:///{tmp_path}/.local/state/clusterports/ports.db" == default_url()
    assert [] == list(tmp_path.iterdir())
