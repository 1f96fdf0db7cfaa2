"""Tenants leave memory when it is short of room: on a thread of its own, so that no request waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from memory_actor.errors import Fenced, LarimarError, LedgerFailed

log = logging.getLogger("larimar.evictor")

_PAUSE_S: Final = 0.25  # between two looks: sizes change with every write


class Evictor:
    """Looks when told to. `crowded()` names those who have to leave, `put_to_sleep(name)` sees them off."""

    def __init__(
        self,
        crowded: Callable[[], list[str]],
        put_to_sleep: Callable[[str], object],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`on_failure` is told of storage errors and ends the process."""
        self._crowded, self._put_to_sleep, self._on_failure = crowded, put_to_sleep, on_failure
        self._look, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larimar-evictor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def look(self) -> None:
        """Something came into memory."""
        self._look.set()

    def close(self) -> None:
        """Stop after the tenant that is leaving. May be called twice, and before `start`."""
        self._stop.set()
        self._look.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._look.wait()
            self._look.clear()
            for name in self._crowded():
                if self._stop.is_set():
                    return
                try:
                    self._put_to_sleep(name)
                except (LedgerFailed, Fenced, OSError) as error:
                    self._on_failure(error)
                    return
                except LarimarError as refusal:
                    log.warning("tenant_stays: tenant=%s: %s", name, refusal)
            self._stop.wait(_PAUSE_S)
