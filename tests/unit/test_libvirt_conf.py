"""libvirt's qemu.conf: what libvirt accepts is accepted, what it refuses is refused in its words."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterports._libvirt_conf import Bound, read_ranges
from clusterports.errors import ConfigurationError


def ranges(text: str) -> dict[str, dict[str, int]]:
    return {name: {end: bound.port for end, bound in ends.items()} for name, ends in read_ranges("f", text).items()}


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_ranges("q.conf", text)
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "# all is commented out\n#backup_port_min = 0\n", "   \t", "\r\n#"])
def test_nothing_set(text: str) -> None:
    """A file that sets nothing changes nothing."""
    assert {} == ranges(text)


def test_all_keys() -> None:
    """Each pair of keys is a range, with the lines of the two."""
    text = """
migration_port_min = 49300
migration_port_max = 49400

backup_port_min = 20000
backup_port_max = 20010
remote_display_port_max = 6000
remote_display_port_min = 5901
remote_websocket_port_min = 5700
"""

    assert {
        "backup": {"first": Bound(20000, 5), "last": Bound(20010, 6)},
        "display": {"first": Bound(5901, 8), "last": Bound(6000, 7)},
        "migration": {"first": Bound(49300, 2), "last": Bound(49400, 3)},
        "websocket": {"first": Bound(5700, 9)},
    } == read_ranges("f", text)


@pytest.mark.parametrize(
    "text",
    [
        "backup_port_min=20000\nbackup_port_max=20010",
        "  backup_port_min\t=  +20000 # why\n\n\n\tbackup_port_max = 020010#\n",
        "backup_port_min = 20000\r\nbackup_port_max = 20010\r\n",
        "backup_port_min = 20000; backup_port_max = 20010;",
        "backup_port_min = 20000\nbackup_port_min = 0\nbackup_port_max = 20010\nbackup_port_max = 'x'",
        "Backup_port_min = 1\nbackup_port_minimum = 2\nbackup_port_max = 20010\nbackup_port_min = 20000",
    ],
)
def test_grammar(text: str) -> None:
    """Blanks, signs, comments, line ends, semicolons; of a key that comes twice the first counts."""
    assert {"backup": {"first": 20000, "last": 20010}} == ranges(text)


@pytest.mark.parametrize(
    "value",
    [
        '"a # string; with [ all"',
        "'a \" in it'",
        '""',
        "''",
        '"""over\nlines "with" quotes\n"""',
        '""""""',
        "-5",
        "99999999999999999999999999",
        "[]",
        '[ "a", "b" ]',
        '[\n  "/dev/null", "/dev/full",\n\t1,\n]',
        "[[1, [2]], [], -3]",
        "[" * 100_000 + "]" * 100_000,
    ],
    ids=lambda value: value[:20],
)
def test_other_keys(value: str) -> None:
    """Values of other keys are skipped, whatever they are, and lines are counted on."""
    text = f"other = {value}\nbackup_port_min = 10810"

    assert {"backup": {"first": Bound(10810, value.count("\n") + 2)}} == read_ranges("f", text)


MAX = "must be between the minimal port"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backup_port_min = 0", "1: backup_port_min: port must be greater than 0, got 0"),
        ("migration_port_min = 0", "1: migration_port_min: port must be greater than 0, got 0"),
        (
            "remote_display_port_min = 5899",
            "1: remote_display_port_min: port must be greater than or equal to 5900, got 5899",
        ),
        (
            "remote_websocket_port_min = 0",
            "1: remote_websocket_port_min: port must be greater than or equal to 5700, got 0",
        ),
        ("\nbackup_port_max = 65536", f"2: backup_port_max: port {MAX} 10809 and 65535, got 65536"),
        ("backup_port_max = 0", f"1: backup_port_max: port {MAX} 10809 and 65535, got 0"),
        ("backup_port_max = 10808", f"1: backup_port_max: port {MAX} 10809 and 65535, got 10808"),
        (
            "backup_port_min = 20010\nbackup_port_max = 20000",
            f"2: backup_port_max: port {MAX} 20010 and 65535, got 20000",
        ),
        (
            "backup_port_max = 20000\n\nbackup_port_min = 20010",
            f"1: backup_port_max: port {MAX} 20010 and 65535, got 20000",
        ),
        ("remote_display_port_max = 5800", f"1: remote_display_port_max: port {MAX} 5900 and 65535, got 5800"),
        (
            "backup_port_min = 20000",
            (
                "1: backup_port_min: min port must not be greater than max port, which is 10872 unless "
                "backup_port_max is set; got 20000"
            ),
        ),
        ("backup_port_min = 65536", "1: backup_port_min: port must be less than or equal to 65535, got 65536"),
        (
            "migration_port_min = 4294967296",
            "1: value for 'migration_port_min' parameter must be in range 0:4294967295, got 4294967296",
        ),
        ("backup_port_min = -1", "1: expected an unsigned integer for 'backup_port_min' parameter, got -1"),
        ("backup_port_min = -0", "1: expected an unsigned integer for 'backup_port_min' parameter, got 0"),
        ('backup_port_max = "20"', "1: expected an unsigned integer for 'backup_port_max' parameter, got '20'"),
        ("backup_port_max = [\n1]", "1: expected an unsigned integer for 'backup_port_max' parameter, got a list"),
        ("backup_port_min = abc # x", "1: backup_port_min: expecting a value, got 'abc'"),
        ("backup_port_min = 1O809", "1: backup_port_min: expecting a separator, got '1O809'"),
        ("backup_port_min = 10.5", "1: backup_port_min: expecting a separator, got '10.5'"),
        ("backup_port_min = 10809 10810", "1: backup_port_min: expecting a separator after '10809'"),
        ("#\nbackup_port_min =", "2: backup_port_min: expecting a value, got ''"),
        ("backup_port_min =\n10809", "1: backup_port_min: expecting a value, got ''"),
        ("backup_port_min = -", "1: backup_port_min: unterminated number, got '-'"),
        ("backup_port_min", "1: backup_port_min: expecting an assignment, got ''"),
        ("backup_port_min 10809", "1: backup_port_min: expecting an assignment, got '10809'"),
        ("backup_port_min = '\x1b(31m", '1: backup_port_min: unterminated string, got "\'\\x1b(31m"'),
        ("= 5", "1: expecting a name"),
        ("a = 1;;", "1: expecting a name"),
        ("\n[section]", "2: expecting a name"),
        ("\ufeffa = 1", "1: expecting a name"),
        ("5 = a", "1: expecting a name"),
        ('\na = "no end\n', "2: a: unterminated string"),
        ("a = 'no end\nb = 1'", "1: a: unterminated string"),
        ('a = """no\nend"', "1: a: unterminated string"),
        ("\na = [ 1,\n 2,\n", "2: a: list is not closed with ]"),
        ("a = [", "1: a: list is not closed with ]"),
        ("a = [[1]", "1: a: list is not closed with ]"),
        ("a = [1\n 2]", "2: a: expecting a separator in list"),
        ("a = [\n1, # one\n]", "2: a: expecting a value"),
        ("a = [,]", "1: a: expecting a value"),
        ("a = yes", "1: a: expecting a value"),
    ],
)
def test_refused(text: str, message: str) -> None:
    """File, line, key, value and bound, in libvirt's words."""
    assert f"q.conf:{message}" == refusal(text)


@pytest.mark.parametrize("wrong", ['"se cret', "se cret", '"se" cret', "[se cret]", "'se\ncret'"])
def test_secrets_of_others(wrong: str) -> None:
    """The password of a console in a broken line is not shown."""
    assert "cret" not in refusal(f"vnc_password = {wrong}")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ('= 5 vnc_password = "cret"', "1: backup_port_min: expecting a separator after '5'"),
        ("= 5, 'cret'", "1: backup_port_min: expecting a separator after '5'"),
        ('= 5"cret"', "1: backup_port_min: expecting a separator after '5'"),
        ("= 5=cret", "1: backup_port_min: expecting a separator"),
        ("= vnc_password = cret", "1: backup_port_min: expecting a value"),
        ("= vnc_password='cret'", "1: backup_port_min: expecting a value"),
        ("= vnc_password:cret", "1: backup_port_min: expecting a value"),
        ("= -vnc_password=cret", "1: backup_port_min: unterminated number"),
        ("= = cret", "1: backup_port_min: expecting a value"),
        ("= 'x' vnc_password = cret", "1: backup_port_min: expecting a separator"),
        ('= "x vnc_password = cret', "1: backup_port_min: unterminated string, got '\"x'"),
        ('= "vnc_password = cret', "1: backup_port_min: unterminated string"),
        (' vnc_password = "cret"', "1: backup_port_min: expecting an assignment"),
        ("= [1, vnc_password = 'cret']", "1: backup_port_min: expecting a value"),
        ("= [\n\nvnc_password = 'cret'", "3: backup_port_min: expecting a value"),
        ("= [1 'cret']", "1: backup_port_min: expecting a separator in list"),
        ("= ['cret'", "1: backup_port_min: list is not closed with ]"),
        ("= ['cret']", "1: expected an unsigned integer for 'backup_port_min' parameter, got a list"),
        ("= '5; vnc_password = cret'", "1: expected an unsigned integer for 'backup_port_min' parameter, got a string"),
        (
            '= """5\nvnc_password = cret"""',
            "1: expected an unsigned integer for 'backup_port_min' parameter, got a string",
        ),
    ],
)
def test_secrets_after_our_own_keys(wrong: str, told: str) -> None:
    """Of a broken line no more is shown than the first word of the value, and no word that is another key."""
    assert f"q.conf:{told}" == refusal(f"backup_port_min {wrong}")


def test_one_port() -> None:
    """A range of one port is a range; so is the whole of them."""
    assert {"backup": {"first": 7, "last": 7}} == ranges("backup_port_min = 7\nbackup_port_max = 7")
    assert {"backup": {"first": 1, "last": 65535}} == ranges("backup_port_min = 1\nbackup_port_max = 65535")


def test_very_large_number() -> None:
    """Digits without end are no reason for Python's own complaint."""
    assert "must be in range 0:4294967295, got 999" in refusal("backup_port_min = " + "9" * 100_000)


def test_large_file() -> None:
    """Time grows with the length of the file, not with its square."""
    text = "a = 'b' # c\n" * 100_000 + "backup_port_min = 10810"
    started = time.process_time()

    assert {"backup": {"first": Bound(10810, 100_001)}} == read_ranges("f", text)
    assert time.process_time() - started < 10


WORDS = ["backup_port_min", "a", "=", " ", "\n", "\r", "10809", "70000", "-", "[", "]", ",", '"', "'", '"""', "#", ";"]


@given(st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=[]), max_size=3)))
def test_anything(words: list[str]) -> None:
    """Whatever the file contains, it is read or refused in one line that names file and line."""
    message = "q.conf:1: nothing"
    try:
        read_ranges("q.conf", "".join(words))
    except ConfigurationError as error:
        message = str(error)

    assert message.isprintable()
    assert re.match(r"q\.conf:[1-9][0-9]*: [^ ]", message)
