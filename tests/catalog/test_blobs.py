"""One contract for both kinds of blob store."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from catalog.blobs import CHUNK_BYTES, Blobs
from catalog.errors import DigestMismatch, NotFound, StoreFull, StoreUnavailable
from catalog.storage.copies import PartKey, key_of

CONTENT = b"0123456789" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["local", "s3"])
def blobs(request, tmp_path, monkeypatch):
    if request.param == "local":
        return Blobs(f"file://{tmp_path}/blobs", tmp_path / "staging")
    server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Blobs(f"s3://{server.new_bucket()}/some/prefix", tmp_path / "staging")


def whole(blobs, sha256, *bounds):
    return b"".join(blobs.read(sha256, *bounds))


def staged(blobs, content=CONTENT):
    path = blobs.new_staging_path()
    path.write_bytes(content)
    return path


def test_what_went_in_comes_out(blobs):
    assert not blobs.exists(SHA256)
    assert blobs.take_in(iter([CONTENT[:7], CONTENT[7:]])) == (SHA256, len(CONTENT))
    assert blobs.exists(SHA256)
    assert whole(blobs, SHA256) == CONTENT
    assert list(blobs.staging.iterdir()) == []


@pytest.mark.parametrize(("start", "end"), [(0, 1), (10, 20), (990, None), (990, 5000), (1000, None), (5, 5)])
def test_ranges(blobs, start, end):
    blobs.take_in(iter([CONTENT]))
    assert whole(blobs, SHA256, start, end) == CONTENT[start:end]


def test_more_than_one_chunk(blobs):
    content = os.urandom(CHUNK_BYTES + 1)
    sha256, size = blobs.take_in(iter([content]))
    chunks = list(blobs.read(sha256))
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, 1]
    assert b"".join(chunks) == content
    assert size == len(content)


def test_an_empty_blob(blobs):
    sha256, size = blobs.take_in(iter([]))
    assert (sha256, size) == (hashlib.sha256(b"").hexdigest(), 0)
    assert blobs.exists(sha256)
    assert whole(blobs, sha256) == b""


def test_adopting_takes_the_file_away(blobs):
    for _ in range(2):  # the second finds the blob there
        path = staged(blobs)
        blobs.adopt(path, SHA256)
        assert not path.exists()
        assert whole(blobs, SHA256) == CONTENT


def test_copying_leaves_the_file(blobs, tmp_path):
    path = tmp_path / "mine"
    path.write_bytes(CONTENT)
    assert blobs.copy_in(path, expected_sha256=SHA256) == (SHA256, len(CONTENT))
    assert path.read_bytes() == CONTENT


def test_another_hash_is_refused_and_nothing_stays(blobs):
    with pytest.raises(DigestMismatch):
        blobs.take_in(iter([CONTENT]), expected_sha256="0" * 64)
    assert not blobs.exists(SHA256)
    assert not blobs.exists("0" * 64)
    assert list(blobs.staging.iterdir()) == []


def test_fetching_gives_a_copy_of_ones_own(blobs, tmp_path):
    blobs.take_in(iter([CONTENT]))
    target = tmp_path / "copy"
    blobs.fetch(SHA256, target)
    target.chmod(0o600)
    target.write_bytes(b"changed")
    assert whole(blobs, SHA256) == CONTENT


def test_what_is_not_there(blobs, tmp_path):
    with pytest.raises(NotFound):
        list(blobs.read(SHA256))
    with pytest.raises(NotFound):
        blobs.fetch(SHA256, tmp_path / "copy")
    blobs.delete(SHA256)


def test_deleting(blobs):
    blobs.take_in(iter([CONTENT]))
    blobs.delete(SHA256)
    assert not blobs.exists(SHA256)


def test_parts_are_joined_in_order(blobs):
    parts = [b"first ", b"second ", b"third"]
    keys = [PartKey("upl_1", number, hashlib.sha256(part).hexdigest()) for number, part in enumerate(parts, start=1)]
    for key, part in zip(reversed(keys), reversed(parts), strict=True):
        path = staged(blobs, part)
        blobs.put_part(key, path)
        assert not path.exists()
    # Bytes that lost a race for the same number do no harm.
    blobs.put_part(PartKey("upl_1", 1, "0" * 64), staged(blobs, b"other"))
    expected = hashlib.sha256(b"first second third").hexdigest()
    assert blobs.assemble(keys, expected_sha256=expected) == (expected, 18)
    assert whole(blobs, expected) == b"first second third"
    with pytest.raises(DigestMismatch):
        blobs.assemble(keys[:2], expected_sha256=expected)
    other = PartKey("upl_2", 1, SHA256)
    blobs.put_part(other, staged(blobs))
    blobs.drop_parts("upl_1")
    with pytest.raises(NotFound, match="Part 1"):
        blobs.assemble(keys, expected_sha256=None)
    assert blobs.assemble([other], expected_sha256=SHA256) == (SHA256, len(CONTENT))
    blobs.drop_parts("upl_2")
    blobs.drop_parts("upl_3")


def test_many_writers_of_the_same_blob(blobs):
    with ThreadPoolExecutor(8) as threads:
        results = set(threads.map(lambda _: blobs.take_in(iter([CONTENT])), range(16)))
    assert results == {(SHA256, len(CONTENT))}
    assert whole(blobs, SHA256) == CONTENT
    assert list(blobs.staging.iterdir()) == []


def test_files_that_a_killed_process_left_are_removed(blobs):
    old, new = staged(blobs), staged(blobs)
    os.utime(old, (1000, 1000))
    blobs.remove_abandoned(older_than=2000)
    assert list(blobs.staging.iterdir()) == [new]


def test_the_store_answers(blobs):
    blobs.ping()
    assert blobs.free_bytes() > 0


def test_counting_the_copies_from_any_folder_on(blobs):
    digests = sorted(blobs.take_in(iter([b"%d" % number]))[0] for number in range(30))
    for number, generation in enumerate((1, 12)):
        blobs._put(staged(blobs), key_of(digests[number], generation))
    listed = [copy for _, batch in blobs.copies() for copy in batch]
    assert sorted((copy.sha256, copy.generation) for copy in listed) == sorted(
        [(sha256, 0) for sha256 in digests] + [(digests[0], 1), (digests[1], 12)]
    )
    assert {copy.size for copy in listed if copy.generation} == {len(CONTENT)}
    start = 1 + int(digests[10][:2], 16)
    later = list(blobs.copies(start))
    assert sorted(copy.sha256 for _, batch in later for copy in batch) == [
        sha256 for sha256 in digests if sha256[:2] >= digests[10][:2]
    ]
    assert later[0][0] >= start
    assert all(blobs.has_copy(copy.sha256, copy.generation) for copy in listed)
    assert not blobs.has_copy(digests[2], 1)


def test_a_store_that_is_not_there(blobs, tmp_path):
    if blobs._folder is not None:
        blobs._folder.rmdir()
        gone = blobs
    else:
        gone = Blobs("s3://levity-no-such-bucket/some/prefix", tmp_path / "staging")
    with pytest.raises(StoreUnavailable):
        gone.ping()


# What only files have


@pytest.fixture
def local(tmp_path):
    return Blobs(f"file://{tmp_path}/a%20folder/blobs", tmp_path / "a folder" / "staging")


def test_local_blobs_are_plain_read_only_files(local, tmp_path):
    local.take_in(iter([CONTENT]))
    path = local.local_path(SHA256)
    assert path == tmp_path / "a folder" / "blobs" / "sha256" / SHA256[:2] / SHA256[2:4] / SHA256
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    with pytest.raises(NotFound):
        local.local_path("0" * 64)


def test_a_full_disk_has_a_name(local, monkeypatch):
    def no_room(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = staged(local)
    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(StoreFull):
        local.adopt(path, SHA256)
    assert path.exists()
    with pytest.raises(StoreFull):
        local.take_in(iter([CONTENT]))
    assert list(local.staging.iterdir()) == [path]
