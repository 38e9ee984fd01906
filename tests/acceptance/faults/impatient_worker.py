"""A worker whose Redis hands messages out again after a second instead of an hour. Run as a module."""

from __future__ import annotations

import sys

from catalog import broker

_build = broker.build_celery


def build(settings, **options):
    app = _build(settings, **options)
    if "visibility_timeout" in app.conf.broker_transport_options:
        app.conf.broker_transport_options.update(
            visibility_timeout=1, unacked_restore_interval=1, unacked_restore_throttle=1
        )
    return app


broker.build_celery = build

if __name__ == "__main__":
    from workers.__main__ import main

    sys.exit(main())
