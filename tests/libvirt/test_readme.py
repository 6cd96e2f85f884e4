"""The README's example of a backup, on a real host."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import servers
    from hypervisors import Host

README = Path(__file__).resolve().parents[2] / "README.md"


def test_backup(valkey: servers.ServerStore, h1: Host, tmp_path: Path) -> None:
    """It runs as it stands, but for the names of the server, of the host and of the place for files."""
    vm = h1.vm("vm-42")
    (code,) = re.findall(r"^```python libvirt\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    here = {
        "redis://redis.example/0": valkey.url,
        "qemu:///system": h1.uri,
        "nbd://kvm-07:": f"nbd://{h1.address}:",
        "/var/tmp": str(tmp_path),  # noqa: S108  # as the README has it
    }
    for name, real in here.items():
        assert name in code
        code = code.replace(name, real)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})  # noqa: S102
    assert ["10809", "[]"] == output.getvalue().splitlines() == re.findall(r"# -> (.*)", code)
    h1.execute("qemu-img", "compare", "--force-share", vm.disk, tmp_path / "vm-42.qcow2")
