"""The conformance suite: what every backend must do, as classes to inherit from. Needs pytest.

::

    from clusterports.testing import BackendConformance

    class TestMine(BackendConformance):
        @pytest.fixture
        def backend(self):
            return MyBackend(...)

A backend for asyncio is checked by :class:`AsyncBackendConformance` in the same way. Where several objects may
work on one store (`Capability.PROCESSES`), the fixture ``backend2`` returns another one. Where the store's clock
can be set, the fixture ``clock`` returns an object like :class:`RealClock`; otherwise the suite waits.

What becomes of damaged data, what `Backend.diagnose` finds, and what the death of a process does
(`Capability.DEATHS`) are for tests of the backend's own.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("clusterports.testing._suite")

from ._suite import AsyncBackendConformance, BackendConformance, Clock, RealClock, exact  # noqa: E402

__all__ = ["AsyncBackendConformance", "BackendConformance", "Clock", "RealClock", "exact"]
