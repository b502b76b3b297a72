"""Metrics for Prometheus. They contain nothing that identifies a person."""

import math
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from letstalk_rt.inference.supervisor import ModelHealth
from letstalk_server.session.connection import ConnectionKind
from letstalk_server.session.session import Session

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STEP_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.24, 0.32, 0.64)


class ServerMetrics:
    """The metrics of one server process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions_ended = Counter(
            "letstalk_sessions_ended", "Sessions that ended", ["reason"], registry=self.registry
        )
        self.connections = Counter(
            "letstalk_connections", "Connections opened", ["role"], registry=self.registry
        )
        self.problems = Counter(
            "letstalk_problems", "Requests refused", ["code"], registry=self.registry
        )
        self.uploads = Counter(
            "letstalk_uploads", "Portraits uploaded and prepared", registry=self.registry
        )
        self.frames = Counter(
            "letstalk_frames", "Frames of sessions that ended", ["kind"], registry=self.registry
        )
        self.stalls = Counter(
            "letstalk_stalls", "Stalls of sessions that ended", registry=self.registry
        )
        self.recoveries = Counter(
            "letstalk_recoveries",
            "Failures of the model that sessions survived, of sessions that ended",
            registry=self.registry,
        )
        self.quality_changes = Counter(
            "letstalk_quality_changes",
            "Changes of the quality level, of sessions that ended",
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "letstalk_step_seconds",
            "One call of the model",
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.step_sessions = Counter(
            "letstalk_step_sessions",
            "Sessions' steps run; by letstalk_step_seconds_count: sessions per call",
            registry=self.registry,
        )

    def record_step(self, seconds: float, count: int) -> None:
        """Record a call of the model; thread-safe."""
        self.step_seconds.observe(seconds)
        self.step_sessions.inc(count)

    def record_session_end(self, session: Session) -> None:
        """Record a session that has ended."""
        self.sessions_ended.labels(session.end_reason or "failed").inc()
        stats = session.stats()
        self.frames.labels("shown").inc(stats.frames - stats.repeats)
        self.frames.labels("repeated").inc(stats.repeats)
        self.stalls.inc(stats.stalls)
        self.recoveries.inc(stats.recoveries)
        self.quality_changes.inc(stats.quality_changes)

    def register_gauges(
        self,
        sessions: Callable[[], Iterable[Session]],
        gauges: dict[str, tuple[str, Callable[[], float]]],
    ) -> None:
        """Register gauges that are read at each scrape.

        Args:
            sessions: returns the running sessions.
            gauges: description and source of the value, by name.
        """
        self.registry.register(_LiveCollector(sessions, gauges))

    def register_model(self, health: Callable[[], ModelHealth]) -> None:
        """Register what happened to the model, read at each scrape."""
        self.registry.register(_ModelCollector(health))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _LiveCollector(Collector):
    """Reads gauges from the running sessions at each scrape."""

    def __init__(
        self,
        sessions: Callable[[], Iterable[Session]],
        gauges: dict[str, tuple[str, Callable[[], float]]],
    ) -> None:
        self._sessions, self._gauges = sessions, gauges

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        for name, (description, value) in self._gauges.items():
            yield GaugeMetricFamily(f"letstalk_{name}", description, value())
        running = list(self._sessions())
        yield GaugeMetricFamily("letstalk_sessions", "Sessions that run", len(running))
        yield _connections(running)
        yield from _sums(running)
        yield _quality_levels(running)
        yield _stages(running)


class _ModelCollector(Collector):
    """Reads the health of the model at each scrape."""

    def __init__(self, health: Callable[[], ModelHealth]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        health = self._health()
        faults = CounterMetricFamily(
            "letstalk_model_faults", "Failures of the model", labels=["kind"]
        )
        for kind, number in health.faults.items():
            faults.add_metric([kind], number)
        yield faults
        yield CounterMetricFamily(
            "letstalk_model_restarts", "How often the model was loaded again", health.restarts
        )
        yield GaugeMetricFamily(
            "letstalk_model_outage_seconds", "Duration of the latest outage", health.outage_s
        )


def _connections(running: list[Session]) -> Metric:
    family = GaugeMetricFamily("letstalk_connections_open", "Open connections", labels=["role"])
    kinds = [connection.kind for session in running for connection in session.connections]
    for kind in ConnectionKind:
        family.add_metric([kind], kinds.count(kind))
    return family


def _sums(running: list[Session]) -> Iterator[Metric]:
    stats = [session.stats() for session in running]
    values = {
        "live_frames": ("Frames shown in running sessions", [s.frames for s in stats]),
        "live_repeats": ("Frames repeated in running sessions", [s.repeats for s in stats]),
        "live_recoveries": (
            "Failures of the model that running sessions survived",
            [s.recoveries for s in stats],
        ),
        "live_stalls": ("Stalls of running sessions", [s.stalls for s in stats]),
        "live_backlog_ms": ("Speech that waits in running sessions", [s.backlog_ms for s in stats]),
        "video_bits_per_second": (
            "Target bit rate of all connections",
            [connection.video_bitrate for one in running for connection in one.connections],
        ),
    }
    for name, (description, parts) in values.items():
        yield GaugeMetricFamily(f"letstalk_{name}", description, sum(parts))


def _quality_levels(running: list[Session]) -> Metric:
    family = GaugeMetricFamily(
        "letstalk_quality_level_sessions",
        "Running sessions by quality level; 0 is full quality",
        labels=["level"],
    )
    levels = [session.stats().quality_level for session in running]
    for level in range(max([0, *levels]) + 1):
        family.add_metric([str(level)], levels.count(level))
    return family


def _stages(running: list[Session]) -> Metric:
    family = GaugeMetricFamily(
        "letstalk_stage_ms",
        "Latency of each stage in the worst of the running sessions",
        labels=["stage", "quantile"],
    )
    worst: dict[tuple[str, str], float] = {}
    for session in running:
        for stage, values in session.stats().stages_ms.items():
            for quantile, value in values.items():
                key = stage, quantile
                if not math.isnan(value):
                    worst[key] = max(value, worst.get(key, 0.0))
    for (stage, quantile), value in sorted(worst.items()):
        family.add_metric([stage, quantile], value)
    return family
