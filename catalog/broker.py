"""The broker: how an idle worker learns that a job waits.

A message carries no job. It wakes one worker of a queue, and the worker claims the most urgent job that the database
holds for that queue. So a lost message costs time but never a job, a message delivered twice costs nothing, and
priorities hold on every broker.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import filesystem

from catalog.jobs.states import Queue
from catalog.settings import Settings

logger = logging.getLogger(__name__)

WAKE_TASK = "levity.wake"
_PAUSE_SECONDS = 2.0


class _WholeFilesChannel(filesystem.Channel):
    """kombu's file queue, but a message appears under its name only once it is written."""

    def _put(self, queue: str, payload: dict[str, Any], **_kwargs: object) -> None:  # type: ignore[override]
        name = f"{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        # kombu looks for what follows the first dot, so a name that begins with one is never picked up.
        unfinished = folder / f".{name}.part"
        unfinished.write_text(json.dumps(payload))
        unfinished.rename(folder / name)


class FileTransport(filesystem.Transport):
    """Celery transport `filesystem://` with whole messages."""

    Channel = _WholeFilesChannel


def build_celery(settings: Settings, *, only_sends: bool = False) -> Celery:
    """The Celery application that API processes send with and workers receive with.

    Args:
        settings: Name the broker.
        only_sends: Nobody waits for messages, so a broker that is silent for seconds is down.
    """
    app = Celery("levity", set_as_current=False)
    app.conf.update(
        broker_url=settings.resolved_broker_url,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=2,
        task_create_missing_queues=False,
        task_queues={str(queue): {"exchange": str(queue), "routing_key": str(queue)} for queue in Queue},
        task_default_queue=str(Queue.CPU),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_reject_on_worker_lost=False,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    if settings.resolved_broker_url.startswith("filesystem:"):
        folders = {name: settings.folder(f"broker/{name}") for name in ("queue", "taken", "control")}
        app.conf.update(
            # kombu warns of an address without a host, which a file queue has no use for.
            broker_url="filesystem://localhost/",
            broker_transport=f"{__name__}:{FileTransport.__name__}",
            broker_transport_options={
                "data_folder_in": str(folders["queue"]),
                "data_folder_out": str(folders["queue"]),
                "processed_folder": str(folders["taken"]),
                "control_folder": str(folders["control"]),
                "store_processed": True,
                "polling_interval": 0.05,
            },
        )
    else:
        app.conf.update(
            # An idle worker gets the message, not one that is busy for an hour.
            worker_disable_prefetch=True,
            broker_transport_options={
                "visibility_timeout": 3600,
                "unacked_restore_interval": 10,
                "unacked_restore_throttle": 1,
                "socket_keepalive": True,
                "socket_connect_timeout": 2,
                "socket_timeout": 2 if only_sends else 30,
                "health_check_interval": 25,
            },
        )
    return app


class Wakeups:
    """Typed access to the one task there is."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._silent_until = 0.0

    def wake(self, queue: Queue) -> None:
        """Wake a worker of `queue`.

        A broker that is down is logged, and left alone for a moment: those who submit jobs must not wait for it one
        after another, and the sweeper finds what nobody was woken for.
        """
        if time.monotonic() < self._silent_until:
            return
        try:
            self._app.send_task(WAKE_TASK, args=[str(queue)], queue=str(queue), ignore_result=True, retry=False)
        except (OperationalError, OSError) as error:
            self._silent_until = time.monotonic() + _PAUSE_SECONDS
            logger.warning("could not wake queue %s: %s", queue, error)

    def broker_answers(self) -> bool:
        """Whether the broker can be reached."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
        except (OperationalError, OSError):
            return False
        return True


def remove_taken_messages(settings: Settings, *, older_than: float) -> None:
    """Delete files of messages that a file queue has handed out before `older_than` (seconds since 1970)."""
    if not settings.resolved_broker_url.startswith("filesystem:"):
        return
    for entry in os.scandir(settings.folder("broker/taken")):
        try:
            if entry.stat().st_mtime < older_than:
                Path(entry.path).unlink()
        except FileNotFoundError:
            continue
