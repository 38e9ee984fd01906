"""Sending wake-ups to brokers that are not well."""

from __future__ import annotations

import socket
import time

from catalog.broker import Wakeups, build_celery
from catalog.jobs.states import Queue
from catalog.settings import Settings


def test_a_broker_that_hangs_is_given_up_and_then_left_alone(tmp_path, caplog):
    """It takes connections and says nothing, as a stopped Redis does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(data_dir=tmp_path, broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        wakeups = Wakeups(build_celery(settings, only_sends=True))
        begun = time.monotonic()
        wakeups.wake(Queue.CPU)
        first = time.monotonic() - begun
        for _ in range(100):
            wakeups.wake(Queue.CPU)
        assert first < 20
        assert time.monotonic() - begun - first < 1
    assert caplog.text.count("could not wake queue cpu") == 1


def test_a_broker_that_came_back_is_used_again(tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path)
    wakeups = Wakeups(build_celery(settings, only_sends=True))
    queue = settings.folder("broker/queue")
    queue.rename(queue.with_name("away"))
    wakeups.wake(Queue.CPU)
    queue.with_name("away").rename(queue)
    wakeups.wake(Queue.CPU)
    assert list(queue.iterdir()) == []
    later = time.monotonic() + 5
    monkeypatch.setattr("time.monotonic", lambda: later)
    wakeups.wake(Queue.CPU)
    assert len(list(queue.iterdir())) == 1
