"""Names and free text: what is accepted, how a host becomes a space, and what is hidden."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterports._names import (
    CLUSTER_SPACE,
    check_labels,
    check_name,
    check_text,
    default_host,
    default_instance,
    host_space,
    is_cluster_space,
    is_host_space,
    is_name,
    space_host,
)
from clusterports._text import printable, redact_url, show
from clusterports.errors import ConfigurationError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))

BAD_NAMES = [
    "",
    " a",
    "a ",
    "\u00a0a",
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    "a\x7fb",
    "a\x85b",
    "a\ud800b",
    "x" * 256,
    "é" * 128,
    None,
    5,
    b"a",
]


@given(TEXT)
def test_a_space_is_its_hosts_own(host: str) -> None:
    """Any host has a space whose name stays inside its key, and that names this host alone."""
    space = host_space(host)

    assert re.fullmatch(r"host:[A-Za-z0-9._%-]*", space)
    assert is_host_space(space)
    assert host == space_host(space)


@pytest.mark.parametrize(
    ("host", "space"),
    [
        ("kvm-07.example", "host:kvm-07.example"),
        ("}x{", "host:%7Dx%7B"),
        ("*", "host:%2A"),
        ("~", "host:%7E"),
        ("host:a", "host:host%3Aa"),
        ("%2A", "host:%252A"),
        ("mün", "host:m%C3%BCn"),
    ],
)
def test_encoding(host: str, space: str) -> None:
    """What is not a letter, a digit, a dot, a dash or an underscore is percent-encoded."""
    assert space == host_space(host)


def test_the_clusters_space() -> None:
    """The space of the cluster is no host's, not even that of a host of this name."""
    assert is_cluster_space(CLUSTER_SPACE)
    assert not is_host_space(CLUSTER_SPACE)
    assert not is_cluster_space(host_space(CLUSTER_SPACE))
    with pytest.raises(ValueError, match="not the space of a host: 'cluster'"):
        space_host(CLUSTER_SPACE)


@pytest.mark.parametrize("name", ["a", "kvm-07", "a b", "日本", "}x{", "*", "[red]", "x" * 255, "é" * 127])
def test_good_names(name: str) -> None:
    """A name may contain whatever can be shown."""
    assert name == check_name("host", name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name: Any) -> None:
    """The message has key and bound, and of the value what fits on a line, without control characters."""
    with pytest.raises(ConfigurationError) as caught:
        check_name("host", name)

    message = str(caught.value)
    assert message.startswith(
        "host: must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end, got "
    )
    assert message.isprintable()
    assert len(message) < 200
    assert show(name) in message


@pytest.mark.parametrize("text", ["", "\x1b[31m", "\0\n", "x" * 10_240, "é" * 5_120])
def test_free_text(text: str) -> None:
    """An owner may contain anything, up to 10 kB."""
    assert text == check_text("owner", text)


@pytest.mark.parametrize(
    ("text", "got"),
    [("\ud800", r"'\ud800'"), (None, "None"), (5, "5"), ("x" * 10_241, "10241 bytes: 'xxx")],
)
def test_bad_free_text(text: Any, got: str) -> None:
    """More than 10 kB, and what cannot be encoded, is refused."""
    with pytest.raises(ConfigurationError, match="owner: must be text of at most 10240 bytes in UTF-8, got ") as caught:
        check_text("owner", text)

    assert got in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"": "x"}, "label key: must not be empty, got ''"),
        ({"a": 5}, "label 'a': must be text of at most 10240 bytes in UTF-8, got 5"),
        ({5: "a"}, "label key: must be text of at most 10240 bytes in UTF-8, got 5"),
        ({str(n): "" for n in range(65)}, "labels: must be at most 64, got 65"),
    ],
)
def test_bad_labels(labels: Any, message: str) -> None:
    """Keys and values of labels are free text, and there are not too many of them."""
    with pytest.raises(ConfigurationError) as caught:
        check_labels(labels)

    assert message == str(caught.value)


def test_labels_are_copied() -> None:
    """What the caller does to the mapping later does not matter."""
    labels = {"job": "7"}
    checked = check_labels(labels)
    labels.clear()

    assert {"job": "7"} == checked
    assert {} == check_labels(None)


def test_default_instance() -> None:
    """No two have the same default name, and it is a name however long the host's is."""
    names = {default_instance("é" * 127) for _ in range(100)}

    assert 100 == len(names)
    assert all(map(is_name, names))


def test_default_host_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose own name is unusable must be given one."""
    monkeypatch.setattr("socket.gethostname", lambda: "")

    with pytest.raises(ConfigurationError, match="host: this machine's own name '' cannot be used; set host to 1 to"):
        default_host()


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("redis://user:secret@host/0", "redis://user:***@host/0"),
        ("redis://secret@host", "redis://***@host"),
        ("redis://:sec/re?t@host/0", "redis://:***@host/0"),
        ("redis://:sec#re@t@host/0", "redis://:***@host/0"),
        ("redis://:a://secret@host", "redis://:***@host"),
        ("redis://host/0?db=1&password=secret&x=1", "redis://host/0?db=1&password=***&x=1"),
        ("redis://host/0?sentinel_password=secret", "redis://host/0?sentinel_password=***"),
        ("unix://:secret@/run/redis.sock", "unix://:***@/run/redis.sock"),
        ("redis://host/0&password=secret", "redis://host/0&password=***"),
        ("redis://host/0;pw=secret", "redis://host/0;pw=***"),
        ("redis://host:6379,password=secret", "redis://host:6379,password=***"),
        ("redis://host/password=secret", "redis://host/password=***"),
        ("redis://password=secret", "redis://password=***"),
        (":secret@host", ":***@host"),
        ("redis://[::1", "redis://[::1"),
        ("", ""),
    ],
)
def test_redact_url(url: str, redacted: str) -> None:
    """No password is left in a URL, also not in one that is wrong."""
    assert redacted == redact_url(url)


@given(st.text(min_size=4))
def test_printable(text: str) -> None:
    """Whatever comes in, nothing that a terminal obeys comes out."""
    assert printable(text).isprintable()


def test_printable_leaves_text_alone() -> None:
    """What can be shown is shown as it is; the rest as an escape."""
    assert r"日本 [red] \x1b[31m\u202e\x9b" == printable("日本 [red] \x1b[31m\u202e\x9b")


def test_show_hides_passwords() -> None:
    """A URL in an error message, also in the wrong place and cut short, is without its password."""
    url = f"redis://:{'secret' * 40}@host"

    assert "'redis://:***@host'" == show(url)
    assert "secret" not in show(f"host={url}")
