"""The seccomp profile that workers' containers get: bubblewrap works under it, and what it forbids fails."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from ctypes.util import find_library

import pytest

from catalog.jobs.states import Queue
from catalog.settings import Settings
from tests.deploy.compose import ROOT
from workers.sandbox import Sandbox

PROFILE = ROOT / "deploy/seccomp/worker.json"

# As a container engine does it: the profile becomes the process's own filter, and then the program starts.
UNDER_THE_PROFILE = """
import ctypes, json, os, sys
library = ctypes.CDLL(sys.argv[1])
library.seccomp_init.restype = ctypes.c_void_p
profile = json.load(open(sys.argv[2]))
assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
filter_ = ctypes.c_void_p(library.seccomp_init(0x7fff0000))
rules = 0
for rule in profile["syscalls"]:
    assert rule["action"] == "SCMP_ACT_ERRNO"
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others belong to another architecture or to a kernel to come
            assert library.seccomp_rule_add(filter_, 0x00050000 | rule["errnoRet"], number, 0) == 0
            rules += 1
assert rules > 30
assert library.seccomp_load(filter_) == 0
os.execvp(sys.argv[3], sys.argv[3:])
"""


def under_the_profile(program, *arguments):
    name = find_library("seccomp")
    if name is None:
        pytest.skip("libseccomp is not installed")
    command = [sys.executable, "-c", UNDER_THE_PROFILE, name, str(PROFILE), sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_bubblewrap_works_under_it(tmp_path):
    if Sandbox("bubblewrap", Settings(data_dir=tmp_path), Queue.CPU).why_not() is not None:
        pytest.skip("bubblewrap does not work here anyway")
    program = """
import sys
from pathlib import Path
from catalog.jobs.states import Queue
from catalog.settings import Settings
from workers.sandbox import Sandbox
print(Sandbox("bubblewrap", Settings(data_dir=Path(sys.argv[1])), Queue.CPU).why_not())
"""
    assert under_the_profile(program, str(tmp_path)) == "None"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of perf_event_open is that of x86-64")
def test_what_it_names_fails():
    program = """
import ctypes, errno, os
c = ctypes.CDLL(None, use_errno=True)
for call in (lambda: c.ptrace(0, 0, 0, 0), lambda: c.syscall(298, None, 0, -1, -1, 0), lambda: c.acct(None)):
    call()
    print(errno.errorcode[ctypes.get_errno()])
"""
    assert under_the_profile(program).split() == ["EPERM"] * 3


def test_it_names_each_call_once():
    (rule,) = json.loads(PROFILE.read_text())["syscalls"]
    assert rule["names"] == sorted(set(rule["names"]))
