"""SQL about uploads, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from catalog.errors import Conflict, NotFound
from catalog.uploads.repository import Uploads
from catalog.uploads.states import UploadState

SHA256 = "a" * 64


def add(database, **values):
    with database.write() as session:
        return Uploads(session).add(**{"filename": "f", "size": None, "sha256": None, **values}).id


def call(database, method, *args, **kwargs):
    with database.write() as session:
        return getattr(Uploads(session), method)(*args, **kwargs)


def test_a_new_upload_is_open(database):
    upload_id = add(database, size=2**40, sha256=SHA256)
    row = call(database, "get", upload_id)
    assert (row.state, row.declared_size, row.declared_sha256) == (UploadState.OPEN, 2**40, SHA256)
    assert (row.size, row.sha256, row.completed_at) == (None, None, None)
    with pytest.raises(Conflict) as error:
        call(database, "get_complete", upload_id)
    assert error.value.code == "upload_incomplete"


def test_parts_come_back_in_order_and_are_replaced(database):
    upload_id = add(database)
    for number, size in ((3, 30), (1, 10), (2, 20), (1, 11)):
        call(database, "put_part", upload_id, number, size=size, sha256=SHA256)
    parts = call(database, "parts", upload_id)
    assert [(part.number, part.size) for part in parts] == [(1, 11), (2, 20), (3, 30)]


def test_a_complete_upload_takes_nothing_more(database):
    upload_id = add(database)
    call(database, "put_part", upload_id, 1, size=1, sha256=SHA256)
    row = call(database, "complete", upload_id, size=2**33, sha256=SHA256)
    assert (row.state, row.size, row.sha256) == (UploadState.COMPLETE, 2**33, SHA256)
    assert row.completed_at >= row.created_at
    assert call(database, "parts", upload_id) == []
    for method, arguments in (("put_part", (upload_id, 2)), ("complete", (upload_id,))):
        with pytest.raises(Conflict) as error:
            call(database, method, *arguments, size=1, sha256=SHA256)
        assert error.value.code == "upload_complete"
    assert call(database, "get_complete", upload_id).id == upload_id


def test_deleting_takes_the_parts_along(database):
    upload_id = add(database)
    call(database, "put_part", upload_id, 1, size=1, sha256=SHA256)
    call(database, "delete", upload_id)
    assert call(database, "parts", upload_id) == []
    for method in ("get", "get_open", "get_complete", "delete"):
        with pytest.raises(NotFound) as error:
            call(database, method, upload_id)
        assert error.value.code == "upload_not_found"


def test_only_one_of_many_completes(database):
    upload_id = add(database)
    barrier = threading.Barrier(8)

    def complete(number):
        barrier.wait()
        try:
            call(database, "complete", upload_id, size=number, sha256=str(number) * 64)
        except Conflict as error:
            return error.code
        return number

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(complete, range(8)))
    (winner,) = [outcome for outcome in outcomes if outcome != "upload_complete"]
    assert call(database, "get", upload_id).size == winner
