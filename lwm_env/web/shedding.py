"""What a server does that has let in more than it can do: the newest rooms wait, so that the others keep their pace."""

import logging
import time
from collections.abc import Callable

from lwm_env.web.hosting import Hosting
from lwm_env.web.protocol import TRY_AGAIN_LATER
from lwm_env.web.rooms import Room
from lwm_env.web.supervisor import Supervisor

TOO_LATE = 0.5  # of max_load: steps that begin later than by this share of a period, on average, are too many

log = logging.getLogger("lwm.shedding")


class Shedding:
    """Puts one room after another to sleep while steps are late, each after `shed_seconds` of it; never the last one.

    Its people are told to try again later and keep their seats as if they had been cut off; the room goes on where it
    was once there is time for it.

    Args:
        sleep: begin to put a room to sleep, without waiting for it.
    """

    def __init__(self, hosting: Hosting, sleep: Callable[[Room], None]) -> None:
        self.hosting, self._sleep = hosting, sleep
        self._since: dict[Supervisor, float] = {}  # when the steps of an engine began to be late

    def look(self) -> None:
        """To be called again and again."""
        seconds = self.hosting.settings.shed_seconds
        if seconds is None:
            return
        now = time.monotonic()
        for engine in self.hosting.engines:
            late = max(costs.lateness for costs in engine.costs.values())
            if not engine.ready or late <= TOO_LATE * self.hosting.settings.max_load:
                self._since.pop(engine, None)
            elif now - self._since.setdefault(engine, now) >= seconds:
                self._since[engine] = now
                self._send_away(engine, late)

    def _send_away(self, engine: Supervisor, late: float) -> None:
        busy = [room for room in self.hosting.holding(engine) if self.hosting.is_busy(room)]
        if len(busy) < 2:
            return
        newest = busy[-1]
        log.warning("steps begin %.0f%% of a period late: the newest of %d rooms waits", 100 * late, len(busy))
        self.hosting.metrics.rejected.labels("shed").inc()
        for viewer in list(newest.viewers):
            viewer.close(TRY_AGAIN_LATER, "the server has too much to do; this room waits")
        self._sleep(newest)
