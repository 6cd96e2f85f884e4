"""The ports of a domain's displays: read as libvirt reads them, filled in without touching anything else."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterports.errors import ConfigurationError
from clusterports.libvirt._graphics_xml import GraphicsXml, Slot

UUID = "58a63014-6f57-5d1a-a2df-0c783fc88b2d"


def domain(devices: str, head: str = f"<name>vm</name><uuid>{UUID}</uuid>") -> str:
    return f"<domain type='qemu'>{head}<devices>{devices}</devices></domain>"


@pytest.mark.parametrize(
    ("graphics", "slots"),
    [
        ("type='vnc'", [("vnc", None)]),
        ("type='vnc' port='-1'", [("vnc", None)]),
        ("type='vnc' port='5901' autoport='yes'", [("vnc", None)]),
        ("type='vnc' port='5901'", [("vnc", 5901)]),
        ("type='vnc' port=' +05901' autoport='no'", [("vnc", 5901)]),
        ("type='vnc' port='-1' autoport='no'", []),
        ("type='vnc' autoport='no'", []),
        ("type='vnc' autoport='YES'", [("vnc", None)]),
        ("type='vnc' port='5901' websocket='-1'", [("vnc", 5901), ("websocket", None)]),
        ("type='vnc' websocket='5700'", [("vnc", None), ("websocket", 5700)]),
        ("type='vnc' websocket='0'", [("vnc", None)]),
        ("type='vnc' socket='/s' websocket='-1'", []),
        ("type='spice'", []),
        ("type='spice' autoport='no'", []),
        ("type='spice' port='0'", []),
        ("type='spice' port='-1'", [("spice", None)]),
        ("type='spice' port='5902' tlsPort='-1'", [("spice", 5902), ("spice-tls", None)]),
        ("type='spice' port='-1' tlsPort='5903'", [("spice", None), ("spice-tls", 5903)]),
        ("type='spice' port='5902' tlsPort='5903'", [("spice", 5902), ("spice-tls", 5903)]),
        ("type='spice' port='-1' tlsPort='-1' autoport='no'", [("spice", None)]),
        ("type='spice' autoport='yes'", [("spice", None)]),
        ("type='spice' port='5902' tlsPort='5903' autoport='yes'", [("spice", None)]),
        ("type='spice' autoport='yes' defaultMode='secure'", [("spice-tls", None)]),
        ("type='spice' autoport='yes' defaultMode='insecure'", [("spice", None)]),
        ("type='rdp' port='3389'", []),
        ("type='sdl' port='5900'", []),
        ("type='egl-headless'", []),
        ("type='dbus'", []),
        ("port='5900'", []),
    ],
)
def test_slots(graphics: str, slots: list[tuple[str, int | None]]) -> None:
    """A port is wanted where libvirt would use one, and any port where it would choose."""
    assert slots == GraphicsXml(domain(f"<graphics {graphics}/>")).slots


@pytest.mark.parametrize(
    ("channels", "spice_tls", "slots"),
    [
        ("", True, ["spice", "spice-tls"]),
        ("<channel name='main' mode='secure'/>", False, ["spice", "spice-tls"]),
        ("<channel name='main' mode='insecure'/>", False, ["spice"]),
        (
            "".join(
                f"<channel name='{name}' mode='secure'/>"
                for name in ["main", "display", "inputs", "cursor", "playback", "record", "smartcard", "usbredir"]
            ),
            False,
            ["spice-tls"],
        ),
    ],
)
def test_spice_tls(channels: str, spice_tls: bool, slots: list[str]) -> None:
    """Automatic spice has a port for TLS where a channel must be secure, or may be and the host can do it."""
    text = domain(f"<graphics type='spice' autoport='yes'>{channels}</graphics>")
    assert [Slot(use, None) for use in slots] == GraphicsXml(text, spice_tls=spice_tls).slots


@pytest.mark.parametrize(
    ("listen", "wanted"),
    [
        ("<listen type='address'/>", 1),
        ("<listen type='network' network='n'/>", 1),
        ("<listen type='socket'/>", 0),
        ("<listen type='none'/>", 0),
        ("<listen type='none'/><listen type='address'/>", 0),
        ("<x><listen type='none'/></x>", 1),
    ],
)
def test_listen(listen: str, wanted: int) -> None:
    """Only a display that listens on an address has ports."""
    assert wanted == len(GraphicsXml(domain(f"<graphics type='vnc'>{listen}</graphics>")).slots)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<graphics type='vnc'/>", "<graphics type='vnc' port='6000'/>"),
        ('<graphics type="vnc" ></graphics >', '<graphics type="vnc" port="6000" ></graphics >'),
        ("<graphics port='-1' type='vnc' autoport='yes'/>", "<graphics port='6000' type='vnc' autoport='no'/>"),
        (
            "<graphics type='vnc' port='5999'\r\n websocket =\"-1\"\tpasswd='&lt;port=\"-1\">'/>",
            "<graphics type='vnc' port='5999'\r\n websocket =\"6000\"\tpasswd='&lt;port=\"-1\">'/>",
        ),
        ("<graphics type='vnc' port=' +05999'/>", "<graphics type='vnc' port=' +05999'/>"),
        (
            "<graphics type='spice' port='-1' tlsPort='-1' autoport='yes'/>",
            "<graphics type='spice' port='6000' tlsPort='0' autoport='no'/>",
        ),
        (
            "<graphics type='spice' port='-1'/><!-- <graphics type='vnc'/> é --><graphics type='vnc'/>",
            "<graphics type='spice' port='6000'/><!-- <graphics type='vnc'/> é --><graphics type='vnc' port='6001'/>",
        ),
        ("<graphics type='sdl'/>", "<graphics type='sdl'/>"),
        ("<x:graphics xmlns:x='y' type='vnc'/>", "<x:graphics xmlns:x='y' type='vnc'/>"),
        ("<video><graphics type='vnc'/></video>", "<video><graphics type='vnc'/></video>"),
    ],
)
def test_fills_in(before: str, after: str) -> None:
    """Automatic ports are filled in, explicit ones are not touched, and all else stays as it was, byte for byte."""
    document = GraphicsXml(domain(before))
    free = iter((6000, 6001))
    numbers = [next(free) if slot.number is None else slot.number for slot in document.slots]
    assert domain(after) == document.with_ports(numbers, "unused")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<name>a</name>", f"<uuid>{UUID}</uuid><name>a</name>"),
        ("\n  <name>a</name>", f"\n  <uuid>{UUID}</uuid>\n  <name>a</name>"),
        ("<name>a</name><uuid/>", f"<name>a</name><uuid>{UUID}</uuid>"),
        ("<name>a</name><uuid > </uuid\n><vcpu/>", f"<name>a</name><uuid>{UUID}</uuid><vcpu/>"),
    ],
)
def test_uuid_filled_in(before: str, after: str) -> None:
    """A domain without a UUID is given the one that is passed."""
    document = GraphicsXml(domain("", before))
    assert ("", domain("", after)) == (document.uuid, document.with_ports([], UUID))
    assert UUID == GraphicsXml(domain("", after)).uuid


def test_name_and_uuid() -> None:
    """Name and UUID are the domain's own, as libvirt writes them."""
    head = f"<name>a&amp;<![CDATA[b]]></name><name>c</name><uuid>\n{UUID.upper().replace('-', '')}</uuid>"
    document = GraphicsXml(domain("<name>d</name>", head))
    assert ("a&b", UUID) == (document.name, document.uuid)


def test_what_runs() -> None:
    """What libvirt reports of a domain that runs names the ports that it uses, whoever chose them."""
    devices = (
        "<graphics type='vnc' port='5901' autoport='yes' websocket='5700'><listen type='address'/></graphics>"
        "<graphics type='spice' port='5902' tlsPort='5903' autoport='yes'/>"
    )
    document = GraphicsXml(domain(devices).replace("<domain", "<domain id='1'", 1))
    assert (True, {5901: "vnc", 5700: "websocket", 5902: "spice", 5903: "spice-tls"}) == (
        document.running,
        document.used,
    )
    resting = GraphicsXml(domain("<graphics type='vnc' port='-1' autoport='yes'/>"))
    assert (False, {}) == (resting.running, resting.used)
    assert {} == GraphicsXml(domain("<graphics type='vnc' port='5901'><listen type='socket'/></graphics>")).used


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<domain>", "domain XML: line 1, column 9: not XML: no element found"),
        ("<network/>", "domain XML: line 1, column 1: must be a <domain> document, got 'network'"),
        (
            "<!DOCTYPE a><domain/>",
            "domain XML: line 1, column 12: a document type declaration (<!DOCTYPE>) is not accepted",
        ),
        ("<domain><uuid>\nno</uuid></domain>", "domain XML: line 2, column 3: uuid: must be a UUID, got '\\nno'"),
    ],
)
def test_not_a_domain(text: str, message: str) -> None:
    """What is no domain's document is refused, and the place named."""
    with pytest.raises(ConfigurationError) as raised:
        GraphicsXml(text)
    assert message == str(raised.value)


@pytest.mark.parametrize("key", ["port", "websocket"])
@pytest.mark.parametrize("value", ["-2", "65536", "x", "5900x", "", "9" * 5000, "\uff15\uff19\uff10\uff10"])
def test_bad_port(key: str, value: str) -> None:
    """A port that is none is refused by key, value and bound; a password is not told."""
    with pytest.raises(ConfigurationError, match=rf"{key}: must be an integer from 1 to 65535, or -1") as raised:
        GraphicsXml(domain(f"<graphics type='vnc' passwd='secret' {key}='{value}'/>"))
    assert "secret" not in str(raised.value)
    assert len(str(raised.value)) < 300


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
kinds = st.sampled_from(["vnc", "spice"])
ports = st.sampled_from([None, "-1", "0", "5950"])


@given(
    kinds,
    st.fixed_dictionaries(
        {}, optional={"port": ports, "websocket": ports, "tlsPort": ports, "autoport": st.sampled_from(["yes", "no"])}
    ),
    words,
    st.booleans(),
)
def test_settled(kind: str, attributes: dict[str, Any], password: str, spice_tls: bool) -> None:
    """What has been filled in asks for those very ports and no others, and no other attribute has changed."""
    given_ = {key: value for key, value in attributes.items() if value is not None}
    written = "".join(f" {key}={quoteattr(value)}" for key, value in {**given_, "passwd": password}.items())
    document = GraphicsXml(domain(f"<graphics type='{kind}'{written}/>"), spice_tls=spice_tls)
    numbers = [6000 + index if slot.number is None else slot.number for index, slot in enumerate(document.slots)]
    text = document.with_ports(numbers, "unused")

    after = GraphicsXml(text, spice_tls=spice_tls)
    assert [Slot(slot.use, number) for slot, number in zip(document.slots, numbers, strict=True)] == after.slots
    element = ET.fromstring(text).find("devices/graphics")  # noqa: S314
    assert element is not None
    names = {"port", "websocket", "tlsPort", "autoport"}
    assert {"type": kind, "passwd": password} == {k: v for k, v in element.attrib.items() if k not in names}
