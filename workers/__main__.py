"""`python -m workers --queue cpu`: one worker process."""

from __future__ import annotations

import argparse
import logging
import sys

from catalog import logs, tracing
from catalog.db import TablesBehind
from catalog.jobs.states import Queue
from catalog.settings import Settings
from workers.sandbox import SandboxUnavailable
from workers.service import DEFAULT_CONCURRENCY, CannotServe, serve


def main() -> int:
    """Serve one queue until told to stop; 0 after an orderly end, 1 when this machine cannot serve it."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Work on the jobs of one queue.")
    parser.add_argument("--queue", type=Queue, choices=list(Queue), required=True, help="whose jobs to work on")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=None,
        help="jobs at once; default 1, which keeps timings undisturbed, and 4 on queue io",
    )
    options = parser.parse_args()
    concurrency = DEFAULT_CONCURRENCY[options.queue] if options.concurrency is None else options.concurrency
    if concurrency < 1:
        parser.error("--concurrency must be at least 1")
    settings = Settings()
    logs.configure(
        settings, f"worker-{options.queue}", text=f"%(asctime)s %(levelname)s {options.queue} %(name)s %(message)s"
    )
    tracing.start("levity-worker")
    try:
        serve(settings, options.queue, concurrency)
    except (CannotServe, SandboxUnavailable, TablesBehind) as error:
        logging.getLogger("workers").error("%s", error)  # noqa: TRY400 - a sentence for the operator, no traceback
        return 1
    finally:
        tracing.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
