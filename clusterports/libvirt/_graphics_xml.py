"""The ports of a ``<domain>`` document's ``<graphics>``, for VNC and spice. Pure: text goes in, text comes out.

What is missing means what it means to libvirt (``domain_conf.c``, ``qemu_process.c``): VNC without a port, or with -1,
or with ``autoport='yes'`` gets one; spice does with -1 or ``autoport='yes'``, and has none otherwise. Then spice needs
a port for TLS where a channel is in mode ``secure``, and a plain one where one is ``insecure``; mode ``any``, which is
the default, needs a plain one, and one for TLS if the host's ``qemu.conf`` has ``spice_tls``. A ``<listen>`` of type
``socket`` or ``none`` needs none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from clusterports._text import show
from clusterports.errors import ConfigurationError
from clusterports.ranges import MAX_PORT, PORT_BOUND

from ._xml import Edit, Tag, Xml, attribute_edits, edited, first_child, read_tag

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["USES", "GraphicsXml", "Slot"]

USES: Final = ("vnc", "websocket", "spice", "spice-tls")
"""What a port is for. A domain has one of each at most."""

GRAPHICS: Final = ["domain", "devices", "graphics"]

CHANNELS: Final = ("main", "display", "inputs", "cursor", "playback", "record", "smartcard", "usbredir")
"""Those of spice, all of which a connection may have."""

AUTOMATIC: Final = -1

_NUMBER: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]{1,99}")
"""What libvirt reads as a number."""

_HEX: Final = re.compile(r"[0-9a-fA-F]{32}")


class Slot(NamedTuple):
    """A port that is wanted. ``use``: one of :data:`USES`. ``number`` None: any that is free."""

    use: str
    number: int | None


class _Port(NamedTuple):
    """``number``: -1 is any that is free, 0 is none."""

    use: str
    attribute: str
    number: int


class _Graphics:
    """One ``<graphics>``. ``said``: the ports that it names."""

    def __init__(self, tag: Tag) -> None:
        self.at = tag.at
        self.attributes = tag.attributes
        self.kind = tag.attributes.get("type", "")
        self.listen = "socket" if self.kind == "vnc" and "socket" in tag.attributes else "address"
        self.listens = 0
        self.modes: dict[str, str] = {}
        self.said: list[_Port] = []

    @property
    def on_tcp(self) -> bool:
        return self.kind in ("vnc", "spice") and self.listen in ("address", "network")


class GraphicsXml:
    """A document of a domain, as a user wrote it or as libvirt reports it.

    :param spice_tls: the host's ``qemu.conf`` has it.
    :raises ConfigurationError: with line and column, when it is not XML, or of another kind, or has a DTD, or a port or
        the UUID is none.
    """

    name: str = ""
    uuid: str = ""
    """As libvirt writes it; "" for none, then it will make one."""
    running: bool = False
    """Whether this is what libvirt says of a domain that runs."""

    def __init__(self, text: str, source: str = "domain XML", *, spice_tls: bool = False) -> None:
        self._xml = Xml(text, source)
        self._spice_tls = spice_tls
        self._graphics: list[_Graphics] = []
        self._root: Tag | None = None
        self._uuid: tuple[int, int] | None = None
        texts: dict[str, list[str]] = {}
        open_: dict[str, int] = {}

        def start(path: list[str], tag: Tag) -> None:
            if len(path) == 1:
                self._root = tag
                self.running = "id" in tag.attributes
            elif len(path) == 2 and path[1] in ("name", "uuid") and path[1] not in texts:
                texts[path[1]] = []
                open_[path[1]] = tag.at
            elif path == GRAPHICS:
                self._graphics.append(_Graphics(tag))
                self._read_ports(self._graphics[-1])
            elif path[:-1] == GRAPHICS:
                self._read_part(self._graphics[-1], path[-1], tag)

        def end(path: list[str], at: int) -> None:
            if len(path) == 2 and path[1] in open_:
                began = open_.pop(path[1])
                if path[1] == "uuid":
                    self.uuid = self._read_uuid("".join(texts["uuid"]))
                    tag = read_tag(self._xml.data, began)
                    self._uuid = (began, tag.end if tag.empty else self._xml.data.index(b">", at) + 1)

        def characters(path: list[str], text: str) -> None:
            if len(path) == 2 and path[1] in open_:
                texts[path[1]].append(text)

        self._xml.read("domain", start, end, characters)
        self.name = "".join(texts.get("name", ()))

    def _read_uuid(self, text: str) -> str:
        digits = text.strip().replace("-", "")
        if digits and not _HEX.fullmatch(digits):
            self._xml.refuse(f"uuid: must be a UUID, got {show(text)}")
        return str(UUID(digits)) if digits else ""

    def _read_ports(self, graphics: _Graphics) -> None:
        if graphics.kind == "vnc":
            attributes = (("vnc", "port", AUTOMATIC), ("websocket", "websocket", 0))
        elif graphics.kind == "spice":
            attributes = (("spice", "port", 0), ("spice-tls", "tlsPort", 0))
        else:
            return
        for use, attribute, default in attributes:
            graphics.said.append(_Port(use, attribute, self._read_port(graphics, attribute, default)))

    def _read_port(self, graphics: _Graphics, key: str, default: int) -> int:
        text = graphics.attributes.get(key)
        if text is None:
            return default
        number = int(text) if _NUMBER.fullmatch(text) else AUTOMATIC - 1
        if not AUTOMATIC <= number <= MAX_PORT:
            self._xml.refuse(f"{key}: must be {PORT_BOUND}, or {AUTOMATIC} for one that is free; got {show(text)}")
        return number

    @staticmethod
    def _read_part(graphics: _Graphics, name: str, tag: Tag) -> None:
        if name == "listen":
            if graphics.listens == 0:
                graphics.listen = tag.attributes.get("type", "")
            graphics.listens += 1
        elif name == "channel":
            graphics.modes[tag.attributes.get("name", "")] = tag.attributes.get("mode", "any")

    # ---------------------------------------------------------------- what it says

    @property
    def slots(self) -> list[Slot]:
        """What a domain that is started from it needs."""
        ports = (port for graphics in self._graphics for port in self._needs(graphics) if port.number)
        return [Slot(port.use, None if port.number == AUTOMATIC else port.number) for port in ports]

    @property
    def used(self) -> dict[int, str]:
        """What a domain that runs uses, and what for."""
        ports = (port for graphics in self._graphics if graphics.on_tcp for port in graphics.said)
        return {port.number: port.use for port in ports if port.number > 0}

    def _needs(self, graphics: _Graphics) -> list[_Port]:
        if not graphics.on_tcp:
            return []
        plain, other = graphics.said
        autoport = graphics.attributes.get("autoport")
        if graphics.kind == "vnc":
            if autoport == "yes":
                plain = plain._replace(number=AUTOMATIC)
            elif autoport == "no" and plain.number == AUTOMATIC:  # libvirt refuses it, and says why
                plain = plain._replace(number=0)
        elif autoport == "yes" or plain.number == other.number == AUTOMATIC:
            default = graphics.attributes.get("defaultMode", "any")
            modes = {default if (mode := graphics.modes.get(name, "any")) == "any" else mode for name in CHANNELS}
            secure = "secure" in modes or ("any" in modes and self._spice_tls)
            plain = plain._replace(number=AUTOMATIC if modes & {"any", "insecure"} else 0)
            other = other._replace(number=AUTOMATIC if secure else 0)
        return [plain, other]

    # ---------------------------------------------------------------- what it becomes

    def with_ports(self, numbers: Sequence[int], uuid: str) -> str:
        """The document with these ports for its :attr:`slots`, and this UUID if it has none, and all else as it was."""
        data = self._xml.data
        edits: list[Edit] = []
        given = iter(numbers)
        for graphics in self._graphics:
            needs = self._needs(graphics)
            filled = [port._replace(number=next(given)) if port.number else port for port in needs]
            if any(port.number == AUTOMATIC for port in needs):
                edits += attribute_edits(data, graphics.at, self._values(graphics, filled))
        assert next(given, None) is None
        if not self.uuid:
            edits.append(self._uuid_edit(uuid))
        return edited(data, edits).decode()

    @staticmethod
    def _values(graphics: _Graphics, ports: Sequence[_Port]) -> dict[str, str]:
        """The attributes that say something else now."""
        attributes = graphics.attributes
        values = {
            port.attribute: str(port.number) for port in ports if port.number != int(attributes.get(port.attribute, 0))
        }
        if attributes.get("autoport", "no") != "no":
            values["autoport"] = "no"
        return values

    def _uuid_edit(self, uuid: str) -> Edit:
        element = b"<uuid>%s</uuid>" % uuid.encode()
        if self._uuid is not None:
            return (*self._uuid, element)
        assert self._root is not None
        root = read_tag(self._xml.data, self._root.at)
        if root.empty:
            raise ConfigurationError("domain XML: the domain has no name")
        return first_child(self._xml.data, root, element)
