"""What Prometheus is told; docs/play.md lists it. No room and no person is ever a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_MILLISECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rooms = Gauge("lwm_rooms", "Rooms by state", ["state"], registry=registry)
        self.seats = Gauge("lwm_seats", "Seats for people by state", ["state"], registry=registry)
        self.viewers = Gauge("lwm_viewers", "Open connections that take part in a room", registry=registry)
        self.slots = Gauge("lwm_slots", "Slots of the engines that rooms hold", ["world"], registry=registry)
        self.load = Gauge("lwm_load", "Expected share of the engine's time", ["engine"], registry=registry)
        self.ready = Gauge("lwm_engine_ready", "1 while the engine answers", ["engine"], registry=registry)
        self.restarts = Gauge(
            "lwm_engine_restarts", "Times that the engine had to be replaced", ["engine"], registry=registry
        )
        self.engine_memory = Gauge(
            "lwm_engine_memory_bytes", "Resident memory of the engine (Linux)", ["engine"], registry=registry
        )
        ProcessCollector(registry=registry)  # process_resident_memory_bytes and the like, of the web process
        seconds = {"buckets": _MILLISECONDS, "registry": registry}
        self.step = Histogram("lwm_step_seconds", "One batched step", ["world"], **seconds)
        self.encode = Histogram("lwm_encode_seconds", "One picture to JPEG", **seconds)
        self.latency = Histogram("lwm_action_to_frame_seconds", "From an action to the frame that shows it", **seconds)
        self.sent = Counter("lwm_frames_sent", "Frames sent", registry=registry)
        self.dropped = Counter("lwm_frames_dropped", "Frames left out for slow readers", registry=registry)
        self.rejected = Counter("lwm_rejected", "Requests and connections turned away", ["reason"], registry=registry)
