"""Encrypted connections, and users: to a real server, with certificates made here."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import servers
from allocator.kit import result
from faults.control import Server, free_port

from clusterports import AsyncPortAllocator, BackendError, BackendUnavailable, PortAllocator, PortRange
from clusterports.errors import ConfigurationError
from clusterports_redis import _wire as wire
from clusterports_redis import connect, connect_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RANGES = [PortRange("r", 1, 9)]

SECRET = "s3cr3t"


class Secured:
    """A server with TLS, whose certificate says that it is 127.0.0.1, unless ``certificate`` names another."""

    def __init__(self, folder: Path, name: str, *options: str, certificate: str = "server") -> None:
        self.folder = folder
        self.port = free_port()
        files = [folder / f"{certificate}.crt", folder / f"{certificate}.key", folder / "ca.crt"]
        names = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
        tls = [word for option, file in zip(names, files, strict=True) for word in (option, str(file))]
        self.server = Server(servers.find_redis(), folder / name, "--tls-port", str(self.port), *tls, *options)

    def url(
        self, *, ca: bool = True, client: bool = False, login: str = "", scheme: str = "rediss", more: str = ""
    ) -> str:
        options = [f"ssl_ca_certs={self.folder}/ca.crt"] if ca else []
        if client:
            options += [f"ssl_certfile={self.folder}/client.crt", f"ssl_keyfile={self.folder}/client.key"]
        query = "&".join([*options, *([more] if more else [])])
        return f"{scheme}://{login}127.0.0.1:{self.port}/0" + (f"?{query}" if query else "")


@pytest.fixture(scope="module")
def certificates(_redis7: servers.ServerStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it signed: for this address, for another host, for a client."""
    folder: Path = tmp_path_factory.mktemp("certificates")
    assert shutil.which("openssl"), "the tests make certificates with openssl"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def make(name: str, *more: str) -> None:
        files = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(["openssl", *new, *files, *more], cwd=folder, check=True, capture_output=True)

    make("ca")
    for name, place in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere"), ("client", "DNS:client")):
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
        make(name, *signed, "-addext", f"subjectAltName={place}")
    return folder


@pytest.fixture(scope="module")
def secured(certificates: Path) -> Iterator[Secured]:
    """Whoever knows the authority may come."""
    secured = Secured(certificates, "open", "--tls-auth-clients", "no")
    with secured.server:
        yield secured


@pytest.fixture(params=[connect, connect_async], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    found: Callable[..., Any] = request.param
    return found


async def refused(backend: Any) -> str:
    """What a caller is told, at once, who will not be served whatever it tries."""
    began = time.monotonic()
    with pytest.raises(BackendError) as caught:
        await result(backend.spaces())
    await result(backend.close())
    assert not isinstance(caught.value, BackendUnavailable)
    assert time.monotonic() - began < 4
    return str(caught.value)


@pytest.mark.parametrize("kind", [PortAllocator, AsyncPortAllocator])
async def test_encrypted(secured: Secured, kind: Any) -> None:
    """With the authority's certificate all works as without TLS."""
    ports = kind(secured.url(), host=kind.__name__, ranges=RANGES, probe=False)
    port = await result(ports.acquire("r", owner="vm"))
    status = await result(ports.status(host=kind.__name__))
    assert [(int(port), "vm")] == [(found.number, found.owner) for found in status.hosts[0].ports]
    await result(ports.close())


@pytest.mark.parametrize("encrypted", [True, False], ids=["TLS", "plain"])
def test_ends_with_its_loop(secured: Secured, encrypted: bool) -> None:
    """What was closed is closed when the event loop ends, also what has not been sent, and beside a server that does
    not say goodbye.
    """

    async def use() -> None:
        backend = connect_async(secured.url() if encrypted else secured.server.url)
        await backend.open("s", instance="a", token="ab", ttl=10_000_000)
        watch = await backend.watch("s", 1)
        secured.server.pause()
        # More than the kernel keeps for the server.
        late = asyncio.create_task(backend.open("s", instance="a" * 30_000_000, token="ab", ttl=10_000_000))
        await asyncio.wait({late}, timeout=0.5)
        late.cancel()
        await asyncio.wait({late})
        assert late.cancelled() or late.exception() is not None
        await watch.close()
        await backend.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            asyncio.run(use())
        finally:
            secured.server.resume()
        gc.collect()
    assert [] == [str(warning.message) for warning in caught]


async def test_unknown_authority(secured: Secured, make: Any) -> None:
    """A certificate that nobody known has signed is refused at once, and the error says so."""
    url = secured.url(ca=False)
    where = url.partition("?")[0]
    expected = f"The store at {where} was not reached: its certificate is not trusted: self-signed certificate in"
    assert (await refused(make(url, timeout=8.0))).startswith(expected)


async def test_another_host(certificates: Path, make: Any) -> None:
    """A certificate for another host is refused at once, and the error says so."""
    secured = Secured(certificates, "elsewhere", "--tls-auth-clients", "no", certificate="elsewhere")
    with secured.server:
        said = await refused(make(secured.url(), timeout=8.0))
    assert "its certificate is not trusted: IP address mismatch" in said


async def test_client_certificate(certificates: Path, make: Any) -> None:
    """A server that wants to know its clients serves those with a certificate, and others hear what is missing."""
    secured = Secured(certificates, "strict", "--tls-auth-clients", "yes")
    with secured.server:
        backend = make(secured.url(client=True))
        assert [] == await result(backend.spaces())
        await result(backend.close())
        backend = make(secured.url(), timeout=8.0)
        with pytest.raises(BackendError, match=r"client's certificate \(ssl_certfile, ssl_keyfile\)"):
            await result(backend.spaces())
        await result(backend.close())


async def test_not_encrypted(secured: Secured, make: Any) -> None:
    """Without TLS, at the port for TLS, nothing is had."""
    backend = make(secured.url(ca=False, scheme="redis"), timeout=0.5)
    with pytest.raises(BackendUnavailable):
        await result(backend.spaces())
    await result(backend.close())


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_missing_file(secured: Secured, make: Any, option: str) -> None:
    """A file that is not there is told by the name of its option before anything is contacted."""
    with pytest.raises(ConfigurationError, match=f"{option}: '.*missing.pem' cannot be read"):
        make(secured.url(ca=False, more=f"{option}={secured.folder}/missing.pem"))


@pytest.mark.parametrize("encrypted", [True, False], ids=["TLS", "plain"])
async def test_user(secured: Secured, make: Any, encrypted: bool) -> None:
    """A user of the server's logs in by the URL; a wrong password, or too few rights, are told and not shown."""
    ask = secured.server.ask
    ask("ACL", "SETUSER", "ports", "reset", "on", f">{SECRET}", f"~{wire.PREFIX}*", f"&{wire.PREFIX}*", "+@all")
    ask("ACL", "SETUSER", "reader", "reset", "on", f">{SECRET}", f"~{wire.PREFIX}*", "+smembers")
    plain = f"127.0.0.1:{secured.server.port}/0"

    def url(login: str) -> str:
        return secured.url(login=f"{login}@") if encrypted else f"redis://{login}@{plain}"

    backend = make(url(f"ports:{SECRET}"))
    assert [] == await result(backend.spaces("nobody"))
    await result(backend.reclaim("s"))
    await result(backend.close())
    said = await refused(make(url(f"ports:not-{SECRET}"), timeout=8.0))
    assert "refuses the login: invalid username-password pair" in said
    assert SECRET not in said
    reader = make(url(f"reader:{SECRET}"))
    assert isinstance(await result(reader.spaces()), list)
    with pytest.raises(BackendError, match="forbids this user what is needed: ") as caught:
        await result(reader.reclaim("s"))
    assert SECRET not in str(caught.value)
    await result(reader.close())
