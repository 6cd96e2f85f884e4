"""The port of a ``<domainbackup>`` document: read as libvirt reads it, filled in without touching anything else."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clusterports.errors import ConfigurationError
from clusterports.libvirt._backup_xml import BackupXml


def pull(server: str) -> str:
    return f"<domainbackup mode='pull'>{server}<disks/></domainbackup>"


@pytest.mark.parametrize(
    "text",
    [
        "<domainbackup/>",
        "<domainbackup mode='push'><disks/></domainbackup>",
        pull("<server transport='unix' socket='/s'/>"),
        pull("<server transport='fd' fdgroup='g' port='http'/>"),
    ],
)
def test_needs_no_port(text: str) -> None:
    """Push, which is what no mode is, and pull by anything but TCP have no port, and are given none."""
    document = BackupXml(text)

    assert (False, None, text) == (document.tcp, document.port, str(document))
    with pytest.raises(ConfigurationError, match=r"^port: backup XML describes no pull backup over TCP$"):
        document.with_port(10809)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("<domainbackup mode='pull'/>", None),
        (pull("<server/>"), None),
        (pull("<server name='::1'/>"), None),
        (pull("<server name='a&amp;b' port=''/>"), None),
        (pull("<server transport='tcp' name='h' port='0'/>"), None),
        (pull("<server name='h' port='&#49;0809'/>"), 10809),
        (pull("<server port='65535'/>"), 65535),
        (pull("<server port='1'/><server port='http'/>"), 1),
        (pull("<!-- <server port='7'/> --><x><server port='8'/></x>"), None),
        (pull("<x:server xmlns:x='y' port='7'/><server xmlns:x='y' x:port='8'/>"), None),
        (pull("<![CDATA[<server port='7'/>]]><?server port='8'?>"), None),
        ('<?xml version="1.0" encoding="ISO-8859-1"?>' + pull("<server name='höst'/>"), None),
        ("\ufeff" + pull("<server name='h'/>"), None),
    ],
)
def test_reads(text: str, port: int | None) -> None:
    """The server is the first that libvirt would look at; no port, an empty one and 0 are none."""
    document = BackupXml(text)

    assert (True, port, text) == (document.tcp, document.port, str(document))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<server name='h'/>", "<server name='h' port='10809'/>"),
        ('<server name="h>" />', '<server name="h>" port="10809" />'),
        ("<server\r\n name = 'a>/'\r\n></server>", "<server\r\n name = 'a>/' port='10809'\r\n></server>"),
        ("<server/>", "<server port='10809'/>"),
        ("<server></server >", "<server port='10809'></server >"),
        ("<server port='' name='h'/>", "<server port='10809' name='h'/>"),
        ('<server\tport =\n"0"/>', '<server\tport =\n"10809"/>'),
        ("<server name=' port=\"0\" ' port='&#48;'/>", "<server name=' port=\"0\" ' port='10809'/>"),
        ("<server xmlns:x='y' x:port='0'/>", "<server xmlns:x='y' x:port='0' port='10809'/>"),
        ("<server port='7'/>", "<server port='10809'/>"),
        ("<!-- <server port='0'/> é --><server/>", "<!-- <server port='0'/> é --><server port='10809'/>"),
        ("", "<server name='127.0.0.1' port='10809'/>"),
        ("\r\n\t", "\r\n\t<server name='127.0.0.1' port='10809'/>\r\n\t"),
        (" é\n", "<server name='127.0.0.1' port='10809'/> é\n"),
    ],
)  # fmt: skip
def test_fills_in(before: str, after: str) -> None:
    """The port is put where it belongs, in the quotes that are there, and everything around it stays."""
    head = "\ufeff<?xml version='1.0'?>\r\n<!-- ü <server/> -->"

    assert head + pull(after) == BackupXml(head + pull(before)).with_port(10809)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<domainbackup mode='pull'/>", "<domainbackup mode='pull'>{}</domainbackup>"),
        ("<domainbackup  mode = \"pull\"\n/>\n", "<domainbackup  mode = \"pull\"\n>{}</domainbackup>\n"),
        ("<domainbackup mode='pull'></domainbackup\n>", "<domainbackup mode='pull'>{}</domainbackup\n>"),
        ("<domainbackup x='/>' mode='pull'></domainbackup>", "<domainbackup x='/>' mode='pull'>{}</domainbackup>"),
    ],
)  # fmt: skip
def test_makes_a_server(before: str, after: str) -> None:
    """Where there is no server, there is one on the loopback then, as libvirt itself would have it."""
    server = "<server name='127.0.0.1' port='10810'/>"

    assert after.format(server) == BackupXml(before).with_port(10810)


@pytest.mark.parametrize(
    ("before", "line_end"),
    [("{}", "\n"), ("{}\n", "\n"), ("\r\n{}\r\n<!-- after -->", "\r\n")],
)
@pytest.mark.parametrize("root", ["<domainbackup mode='pull'/>", pull("<server port='7'/>")])
def test_note(before: str, line_end: str, root: str) -> None:
    """A note is a comment in a line of its own behind the root, with what could end it or break it made harmless."""
    noted = BackupXml(before.format(root)).with_port(7, "a -- b --->\x00\x1b\n\ud800\uffff é -")
    comment = r"<!-- a - - b - - ->\x00\x1b\n\ud800\uffff \xe9 - -->"

    assert before.format(f"{BackupXml(root).with_port(7)}{line_end}{comment}") == noted
    assert noted == BackupXml(noted).with_port(7)


@pytest.mark.parametrize(
    "port", ["65536", "70000", "-1", "+7", "010", "00", " 7", "7.0", "0x10", "http", "٣", "9" * 5000]
)
def test_bad_port(port: str) -> None:
    """What is no port is refused, with key, bound, value and place."""
    shown = repr(port) if len(port) < 78 else f"'{port[:76]}..."
    with pytest.raises(ConfigurationError) as refused:
        BackupXml(f"<domainbackup mode='pull'>\n <server port='{port}'/>\n</domainbackup>", "in.xml")

    assert (
        "in.xml: line 2, column 2: port: must be an integer from 1 to 65535, or 0 for one that is free; got " + shown
    ) == str(refused.value)


MODE = "mode: must be push or pull"
TRANSPORT = "transport: must be tcp, unix or fd"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<domainbackup mode='Pull'/>", f"line 1, column 1: {MODE}; got 'Pull'"),
        ("\n<domainbackup mode=''/>", f"line 2, column 1: {MODE}; got ''"),
        ("<domainbackup mode='pull '/>", f"line 1, column 1: {MODE}; got 'pull '"),
        ("<domainbackup mode='a\u202eb'/>", rf"line 1, column 1: {MODE}; got 'a\u202eb'"),
        (pull("\n <server transport='TCP'/>"), f"line 2, column 2: {TRANSPORT}; got 'TCP'"),
        (pull("<server transport='' port='7'/>"), f"line 1, column 27: {TRANSPORT}; got ''"),
        (
            "<domainbackup><server port='7'/></domainbackup>",
            "line 1, column 15: server: must be in a document with mode 'pull', got mode 'push', as no mode is",
        ),
    ],
)
def test_not_libvirts(text: str, told: str) -> None:
    """What libvirt takes neither for a backup with a port nor for one without is refused, and not given none."""
    with pytest.raises(ConfigurationError) as refused:
        BackupXml(text, "in.xml")

    assert f"in.xml: {told}" == str(refused.value)


@pytest.mark.parametrize("number", [0, -1, 65536])
def test_no_port_to_fill_in(number: int) -> None:
    """Nor is anything else filled in."""
    with pytest.raises(ConfigurationError, match=rf"^port: must be an integer from 1 to 65535, got {number}$"):
        BackupXml(pull("")).with_port(number)


ENTITIES = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'><!ENTITY f SYSTEM 'file:///etc/passwd'>]>"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1, column 1: not XML: no element found"),
        ("<domainbackup>\n<a></domainbackup>", "line 2, column 6: not XML: mismatched tag"),
        ("<domainbackup mode='pull' mode='push'/>", "line 1, column 27: not XML: duplicate attribute"),
        ("<domainbackup/>\n<domainbackup/>", "line 2, column 1: not XML: junk after document element"),
        ("<domainbackup>\x00</domainbackup>", "line 1, column 15: not XML: not well-formed (invalid token)"),
        ("<domainbackup>\n\n  \ud800", r"line 3, column 3: not XML: no character '\ud800' can be in it"),
        ("<domainbackup>&a;</domainbackup>", "line 1, column 15: not XML: undefined entity"),
        ("<domain/>", "line 1, column 1: must be a <domainbackup> document, got 'domain'"),
        ("\n<a\u202eb/>", "line 2, column 3: not XML: not well-formed (invalid token)"),
        ("<domainbackup xmlns='x'/>", "line 1, column 1: must be a <domainbackup> document, got 'x domainbackup'"),
        (
            f"\n  {ENTITIES}<domainbackup>&b;&f;</domainbackup>",
            "line 2, column 15: a document type declaration (<!DOCTYPE>) is not accepted",
        ),
        (
            "<!DOCTYPE domainbackup SYSTEM 'x.dtd'><domainbackup/>",
            "line 1, column 38: a document type declaration (<!DOCTYPE>) is not accepted",
        ),
    ],
)
def test_refused(text: str, told: str) -> None:
    """What is not XML, or has a document type, or is another document, is refused with its place."""
    with pytest.raises(ConfigurationError) as refused:
        BackupXml(text, "a\x1bb")

    assert rf"a\x1bb: {told}" == str(refused.value)


def attribute(name: str) -> st.SearchStrategy[str]:
    """An attribute with any value, in either quotes, with or without blanks."""
    parts = [*"a0é>/='\"\n\t ", "&amp;", "&lt;"]
    value = st.lists(st.sampled_from(parts), max_size=5).map("".join)
    blank = st.sampled_from(["", " ", "\r\n"])
    return st.tuples(st.sampled_from("'\""), value, blank, blank, st.sampled_from([" ", "\n\t"])).map(
        lambda t: f"{t[4]}{name}{t[2]}={t[3]}{t[0]}{t[1].replace(t[0], '&#39;' if t[0] == chr(39) else '&quot;')}{t[0]}"
    )


def attributes(*fixed: str) -> st.SearchStrategy[str]:
    """Some attributes in any order, and always the fixed ones."""
    several = st.sets(st.sampled_from(["name", "tls", "xport", "port-", "a.port"])).flatmap(
        lambda names: st.tuples(*(attribute(name) for name in sorted(names)))
    )
    return several.flatmap(lambda some: st.permutations([*some, *fixed])).map("".join)


FILLING = st.sampled_from(
    ["", " ", "\n  ", "\r\n", "é€𝄞", "<!-- <server port='0'/> -->", "<!-- > -->", "<?server port='0'?>", "<disks/>",
     "<![CDATA[<server>]]>", "<a><server port='0'/></a>", "&lt;server/&gt;", "<servers port='0'/>"]
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Pull backups over TCP, as nobody would write them."""
    port = draw(st.sampled_from(["", " port=''", ' port="0"', "\nport = '0'", " port='&#x30;'", " port='10900'"]))
    transport = draw(st.sampled_from(["", " transport='tcp'", '\ttransport\n=\n"tcp"']))
    tag = f"<server{draw(attributes(*filter(None, [port, transport])))}{draw(st.sampled_from(['', ' ']))}"
    server = draw(st.sampled_from(["", f"{tag}/>", f"{tag}></server>", f"{tag}>\n <x/>é</server\n>"]))
    before, after = ("".join(draw(st.lists(FILLING, max_size=3))) for _ in range(2))
    head = draw(
        st.sampled_from(["", "\ufeff", "<?xml version='1.0' encoding='ISO-8859-2'?>\r\n", "<!-- <server/> -->"])
    )
    mode = draw(st.sampled_from([" mode='pull'", '\nmode = "pull"']))
    root = f"<domainbackup{draw(attributes(mode))}"
    if not before + server + after and draw(st.booleans()):
        return f"{head}{root}/>"
    return f"{head}{root}>{before}{server}{after}</domainbackup >\n"


def tree(text: str) -> ET.Element:
    return ET.fromstring(re.sub(r"\A\ufeff?(<\?xml .*?\?>)?", "", text))  # noqa: S314


@given(documents(), st.integers(1, 65535), st.text(st.characters(exclude_categories=[]), max_size=10))
@example("<domainbackup mode='pull'/>", 1, "")
def test_the_same_but_for_the_port(text: str, number: int, note: str) -> None:
    """Whatever the document and the note: it is the same tree but for the port, and only there is it other text."""
    document = BackupXml(text)
    filled = document.with_port(number, note)
    before, after = (tree(one) for one in (text, filled))
    old, new = before.find("server"), after.find("server")
    assert new is not None
    assert number == BackupXml(filled).port
    assert str(number) == new.attrib.pop("port")
    if old is None:
        assert {"name": "127.0.0.1"} == new.attrib
        assert (before.text or "") == (new.tail or "")
        after.remove(new)
        after.text = before.text
    else:
        old.attrib.pop("port", None)

    assert ET.tostring(before) == ET.tostring(after)


@given(documents())
def test_back_again(text: str) -> None:
    """Where there was a port, only its digits change."""
    document = BackupXml(text)
    if document.port is not None:
        assert text == BackupXml(document.with_port(7)).with_port(document.port)
