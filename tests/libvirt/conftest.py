"""Two hosts with a libvirtd each."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import hypervisors
import pytest
import servers
from conftest import missing

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hypervisors.Machine]:
    """Both hosts, as the test before left them."""
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(hypervisors.Machine(tmp_path_factory.mktemp("machine")))
        except servers.Missing as exc:
            missing(exc)
        yield hosts


@pytest.fixture
def h1(machine: hypervisors.Machine) -> hypervisors.Host:
    """A host without virtual machines."""
    machine.hosts[0].clean()
    return machine.hosts[0]


@pytest.fixture
def h2(machine: hypervisors.Machine) -> hypervisors.Host:
    """Another."""
    machine.hosts[1].clean()
    return machine.hosts[1]
