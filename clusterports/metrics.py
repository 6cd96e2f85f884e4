"""Figures for Prometheus: of the whole cluster, and of an allocator in this process. Needs the extra ``metrics``.

Ranges, hosts and outcomes are labels, and each has few values. An owner, an instance or a port number is none.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from datetime import UTC, datetime
from math import inf
from threading import Lock
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ._lease import MARGIN
from ._names import CLUSTER_SPACE, check_name, host_space, is_cluster_space, is_host_space, space_host
from .abc import Claimed
from .errors import BackendError, BackendUnavailable, ClusterPortsError
from .status import ClusterStatus

try:
    from prometheus_client import REGISTRY, Histogram
    from prometheus_client import Counter as CounterMetric
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ClusterPortsError("metrics: needs prometheus-client: pip install clusterports[metrics]") from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from prometheus_client import CollectorRegistry

    from ._async.allocator import AsyncPortAllocator
    from ._lease import HeldPort
    from ._sync.allocator import PortAllocator
    from .abc import Backend, SpaceView
    from .errors import LeaseLost
    from .ranges import PortRange

__all__ = ["ClusterCollector", "instrument"]

logger = logging.getLogger("clusterports")

# ------------------------------------------------------------------ the cluster

OF_CLUSTER: dict[str, tuple[str, tuple[str, ...]]] = {
    "clusterports_up": ("Whether the store could be read: 1 or 0. At 0 the other figures are missing.", ()),
    "clusterports_read_duration_seconds": ("How long this read of the store took.", ()),
    "clusterports_range_size": ("Port numbers from the first to the last of a range, excluded ones too.", ("range",)),
    "clusterports_ports": (
        "Port numbers of a range by state, which add up to its size. Without a host: in the whole cluster.",
        ("host", "range", "state"),
    ),
    "clusterports_host_ports": (
        "Ports that are not free, of whatever range or none, by state.",
        ("host", "state"),
    ),
    "clusterports_leases": ("Leases on a host that are live, or expired and not ended yet.", ("host", "state")),
    "clusterports_leases_in_jeopardy": (
        "Live leases with less than a tenth of their TTL left: their holders do not rely on them any more.",
        ("host",),
    ),
    "clusterports_lease_min_remaining_seconds": (
        "Until the first of a host's live leases runs out, unless it is renewed.",
        ("host",),
    ),
    "clusterports_reclaim_backlog": (
        "Expired leases, and ports whose cooling or mark is over, that wait for somebody to visit the host, or for gc.",
        ("host", "kind"),
    ),
    "clusterports_waiting_callers": ("Callers in the queue for a port of a host.", ("host",)),
    "clusterports_recovering_seconds": (
        "For how long no port is given out on a host, because the store lost what it knew; else 0.",
        ("host",),
    ),
    "clusterports_host_readable": ("Whether the data of a host could be read, or is damaged: 1 or 0.", ("host",)),
    "clusterports_store_healthy": (
        "Whether doctor finds nothing wrong with the store there: 1 or 0. Missing where its user may not look.",
        ("check",),
    ),
}
"""Gauges, each with its help and its labels."""


CHECKS = ("persistence", "eviction", "memory", "replicas")
"""What of a diagnosis of the store is a figure: cheap, and true of the store rather than of who asks."""

BEFORE = ("store", "version", "clock")
"""What a diagnosis may begin with. What comes after `CHECKS` may compare all hosts, so it is not asked for."""

LOOK_EVERY = 60.0
"""Seconds from one diagnosis to the next."""


class ClusterCollector(Collector):
    """Reads the cluster once in each scrape: ``registry.register(ClusterCollector(backend, ranges))``.

    ``backend`` is not closed. ``ranges``: all that are configured, as for
    :meth:`~clusterports.status.ClusterStatus.build`. ``host``: this one only, and the whole cluster's ports. A store
    that is away is told as ``clusterports_up 0``, and why in the log of ``clusterports``, once.
    """

    def __init__(self, backend: Backend, ranges: Iterable[PortRange], host: str | None = None) -> None:
        self._backend = backend
        self._ranges = list(ranges)
        self._host = None if host is None else check_name("host", host)
        self._trouble = ""
        self._looked = -inf
        self._healthy: dict[str, bool] = {}

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The names alone: nothing is read before the first scrape."""
        return (GaugeMetricFamily(name, text) for name, (text, _) in OF_CLUSTER.items())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All figures, of this moment."""
        figures = _Figures()
        for one in self._ranges:
            figures.add("clusterports_range_size", one.size, one.name)
        began = perf_counter()
        trouble = ""
        spaces: list[str] = []
        views: Sequence[SpaceView | BackendError] = []
        try:
            spaces = self._spaces()
            views = self._backend.read(spaces)
        except BackendError as error:
            trouble = str(error)
        figures.add("clusterports_read_duration_seconds", perf_counter() - began)
        figures.add("clusterports_up", not trouble)
        self._tell(trouble)
        if not trouble:
            self._count(figures, spaces, views)
            for check, healthy in self._look().items():
                figures.add("clusterports_store_healthy", healthy, check)
        return figures.families()

    def _spaces(self) -> list[str]:
        return self._backend.spaces() if self._host is None else [CLUSTER_SPACE, host_space(self._host)]

    def _count(self, figures: _Figures, spaces: list[str], views: Sequence[SpaceView | BackendError]) -> None:
        cluster = ClusterStatus.build(
            names=spaces,
            views=views,
            ranges=self._ranges,
            backend=self._backend.name,
            generated_at=datetime.now(UTC),
        )
        figures.add_status(cluster)
        for space, view in zip(spaces, views, strict=True):
            host = space_host(space) if is_host_space(space) else ""
            if (host or is_cluster_space(space)) and not isinstance(view, BackendError):
                figures.add_due(host, view)

    def _look(self) -> dict[str, bool]:
        """Whether all is well with the store, by check, of now or lately."""
        if monotonic() - self._looked >= LOOK_EVERY:
            self._looked = monotonic()
            found: dict[str, bool] = {}
            for finding in self._backend.diagnose():
                if finding.check in CHECKS and not finding.unknown:
                    found[finding.check] = finding.level == "ok" and found.get(finding.check, True)
                elif finding.check not in (*CHECKS, *BEFORE):
                    break
            self._healthy = found
        return self._healthy

    def _tell(self, trouble: str) -> None:
        if trouble and not self._trouble:
            logger.warning("the store cannot be read: %s", trouble)
        elif self._trouble and not trouble:
            logger.warning("the store can be read again")
        self._trouble = trouble


class _Figures:
    """Samples by name and labels. Names in the store that stand for the same host are one."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in OF_CLUSTER}

    def add(self, name: str, value: float, *labels: str) -> None:
        samples = self._samples[name]
        samples[labels] = samples.get(labels, 0) + value

    def least(self, name: str, value: float, *labels: str) -> None:
        samples = self._samples[name]
        samples[labels] = min(samples.get(labels, value), value)

    def add_status(self, cluster: ClusterStatus) -> None:
        """What ``status`` shows as well."""
        for one in cluster.ranges:
            for there in one.hosts:
                for state in ("held", "cooling", "foreign", "free", "excluded"):
                    self.add("clusterports_ports", getattr(there, state), there.host, one.name, state)
        for host in cluster.hosts:
            ports = Counter(port.state for port in host.ports)
            leases = Counter(lease.state for lease in host.leases)
            for state in ("held", "cooling", "foreign"):
                self.add("clusterports_host_ports", ports[state], host.host, state)
            for state in ("live", "expired"):
                self.add("clusterports_leases", leases[state], host.host, state)
            for lease in host.leases:
                if lease.state == "live":
                    self.least("clusterports_lease_min_remaining_seconds", lease.expires_in, host.host)
            self.add("clusterports_waiting_callers", host.waiting, host.host)
            self.add("clusterports_recovering_seconds", host.recovering, host.host)
            self.least("clusterports_host_readable", 1, host.host)
        for damaged in cluster.unreadable:
            self.least("clusterports_host_readable", 0, damaged.host)

    def add_due(self, host: str, view: SpaceView) -> None:
        """What needs the exact times. A lease in grace gets a full TTL to renew, so it is not due."""
        late = [lease for lease in view.leases if 0 < lease.expires_in < lease.ttl * MARGIN]
        over = [lease for lease in view.leases if lease.expires_in <= 0 and not lease.grace]
        free = [port for port in view.ports if port.free_in is not None and port.free_in <= 0]
        self.add("clusterports_leases_in_jeopardy", len(late), host)
        self.add("clusterports_reclaim_backlog", len(over), host, "leases")
        self.add("clusterports_reclaim_backlog", len(free), host, "ports")

    def families(self) -> Iterator[GaugeMetricFamily]:
        for name, (text, labels) in OF_CLUSTER.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, value in self._samples[name].items():
                family.add_metric(values, value)
            yield family


# ------------------------------------------------------------------ an allocator

STEPS = {
    "open": ("opened", "occupied"),
    "acquire": ("granted", "full", "queued", "recovering", "stale", "gone"),
    "claim": ("claimed", "gone"),
    "renew": ("renewed", "gone"),
    "release": ("released", "gone"),
    "mark_foreign": ("marked", "gone"),
    "close_lease": ("closed", "gone"),
    "reclaim": ("reclaimed",),
}
"""What is counted and timed, with the replies of :mod:`clusterports.abc`."""

FAILURES = ("unavailable", "error", "cancelled")

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds: from a server beside us to the longest timeout that is common."""


class _Metrics:
    """Those of all allocators that share a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._steps = CounterMetric(
            "clusterports_steps_total",
            "Steps asked of the store by what became of them. A heartbeat is one renew for each host.",
            ["step", "outcome"],
            registry=registry,
        )
        seconds = Histogram(
            "clusterports_step_duration_seconds",
            "How long the store took for a step, with repetitions. A heartbeat is one for all hosts.",
            ["step"],
            registry=registry,
            buckets=BUCKETS,
        )
        self.jeopardy = CounterMetric(
            "clusterports_jeopardies_total",
            "How often a lease that holds ports could not be renewed in time.",
            registry=registry,
        )
        self.losses = CounterMetric(
            "clusterports_losses_total",
            "How often a lease or some of its ports were lost: revoked by the store, or past the deadline.",
            ["reason"],
            registry=registry,
        )
        self.lost = CounterMetric(
            "clusterports_lost_ports_total", "Ports that were lost.", ["reason"], registry=registry
        )
        self.recovered = CounterMetric(
            "clusterports_recovered_ports_total",
            "Ports that the store had lost, and that were claimed again.",
            registry=registry,
        )
        # A rate needs a first value: what has not happened yet is 0, not missing.
        self._count = {
            (step, outcome): self._steps.labels(step, outcome)
            for step, outcomes in STEPS.items()
            for outcome in (*outcomes, *FAILURES)
        }
        self._took = {step: seconds.labels(step) for step in STEPS}
        for reason in ("revoked", "deadline"):
            self.losses.labels(reason)
            self.lost.labels(reason)

    def done(self, step: str, began: float, reply: object, args: Sequence[Any]) -> None:
        self._took[step].observe(perf_counter() - began)
        for one in reply if isinstance(reply, list) else (reply,):
            outcome = _outcome(one)
            counter = self._count.get((step, outcome)) or self._steps.labels(step, outcome)
            counter.inc()
        if isinstance(reply, Claimed):
            self.recovered.inc(len(args[-1]) - len(reply.refused))


def _outcome(reply: object) -> str:
    if isinstance(reply, BackendUnavailable):
        return "unavailable"
    if isinstance(reply, BaseException):
        return "error" if isinstance(reply, Exception) else "cancelled"
    return type(reply).__name__.lower()


class _Counted:
    """A backend for threads or for tasks, of which the steps in `STEPS` are counted; all else is its own."""

    def __init__(self, backend: Any, metrics: _Metrics) -> None:
        self._backend = backend
        for step in STEPS:
            function = getattr(backend, step)
            wrap = _counted_task if inspect.iscoroutinefunction(function) else _counted
            setattr(self, step, wrap(step, function, metrics))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _counted(step: str, function: Callable[..., Any], metrics: _Metrics) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            reply = function(*args, **kwargs)
        except BaseException as error:
            metrics.done(step, began, error, args)
            raise
        metrics.done(step, began, reply, args)
        return reply

    return counted


def _counted_task(step: str, function: Callable[..., Awaitable[Any]], metrics: _Metrics) -> Callable[..., Any]:
    async def counted(*args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            reply = await function(*args, **kwargs)
        except BaseException as error:
            metrics.done(step, began, error, args)
            raise
        metrics.done(step, began, reply, args)
        return reply

    return counted


_known: WeakKeyDictionary[CollectorRegistry, _Metrics] = WeakKeyDictionary()
_making = Lock()


def instrument(allocator: PortAllocator | AsyncPortAllocator, registry: CollectorRegistry = REGISTRY) -> None:
    """Count what this allocator asks of the store, how long that takes, and what befalls its leases.

    To be called before the allocator is used. Several in a process are counted together; one that is counted already
    stays as it is. Its own ``on_lost`` and ``on_jeopardy`` are called as before.
    """
    if isinstance(allocator._backend, _Counted):
        return
    with _making:
        metrics = _known.get(registry)
        if metrics is None:
            metrics = _known[registry] = _Metrics(registry)
    on_lost, on_jeopardy = allocator._on_lost, allocator._on_jeopardy

    def lost(loss: LeaseLost) -> None:
        metrics.losses.labels(loss.reason).inc()
        metrics.lost.labels(loss.reason).inc(len(loss.allocations))
        if on_lost is not None:
            on_lost(loss)

    def jeopardy(allocations: list[HeldPort]) -> None:
        metrics.jeopardy.inc()
        if on_jeopardy is not None:
            on_jeopardy(cast("Any", allocations))

    counted: Any = allocator  # of either kind
    counted._backend = _Counted(allocator._backend, metrics)
    counted._on_lost = lost
    counted._on_jeopardy = jeopardy
