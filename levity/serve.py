"""`levity serve`: run the whole service on this machine until told to stop."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Self

from levity.service import Service

_WATCH_SECONDS = 0.5
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def serve(*, host: str, port: int, data_dir: Path, workers: bool, api_processes: int) -> int:
    """Start the service, say where it is, and stay until SIGINT or SIGTERM; a second one kills at once."""
    # Until it is ready there is nothing to stop in order: SIGTERM ends the start like Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    service = Service(data_dir, host=host, port=port, workers=workers, api_processes=api_processes, log=_log)
    service.start()
    with _Signals() as signals:
        sys.stdout.write(f"Levity is ready at {service.url} (documentation: {service.url}/docs). Ctrl-C stops it.\n")
        sys.stdout.flush()
        while not signals.wait(_WATCH_SECONDS):
            service.watch()
        service.tell(
            "serve", "stopping; a running job may finish or goes back to its queue (once more to stop at once)"
        )
        # From the main thread come signals, so the orderly stop runs beside it.
        stopping = threading.Thread(target=service.stop, daemon=True)
        stopping.start()
        while stopping.is_alive():
            if signals.wait(_WATCH_SECONDS):
                service.kill()
                return 130
    return 0


class _Signals:
    """Notices signals in a form that a loop can wait for."""

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._earlier_fd = signal.set_wakeup_fd(self._writing)
        self._earlier = {number: signal.signal(number, lambda *_: None) for number in (*_STOPPING, signal.SIGCHLD)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_fd)
        os.close(self._reading)
        os.close(self._writing)

    def wait(self, seconds: float) -> bool:
        """Wait for any signal, at most so long; whether it was one that asks to stop."""
        ready, _, _ = select.select([self._reading], [], [], seconds)
        return bool(ready) and any(number in _STOPPING for number in os.read(self._reading, 512))


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
