"""How things go wrong around a child, in words for the job's owner."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from compression import gpu
from workers.protocol import Failed

# How Python, the dynamic linker, ONNX Runtime, its C++ library and numpy say that an allocation failed.
_ALLOCATION_FAILURE = re.compile(
    r"MemoryError|failed to map segment|bad_alloc|bad allocation|failed to allocate memory|cannot allocate memory|"
    r"unable to allocate|out of memory",
    re.IGNORECASE,
)


@dataclass
class JobFailed(Exception):
    """An attempt ends with this error.

    Attributes:
        code: Stable machine-readable identifier.
        message: One or two sentences for a person.
        retryable: True when another attempt may succeed.
        log_tail: End of the child's standard error.
    """

    code: str
    message: str
    retryable: bool = False
    log_tail: str = ""

    def as_json(self) -> dict[str, object]:
        """The error as a job shows it."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "log_tail": self.log_tail,
        }


def is_allocation_failure(error: BaseException) -> bool:
    """Whether memory that could not be had is behind an exception."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or _ALLOCATION_FAILURE.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def out_of_memory(address_space: int | None) -> Failed:
    """What is said when a child could not get the memory it needs."""
    limit = "this machine has" if address_space is None else f"the limit of {address_space / 2**20:.0f} MiB allows"
    return Failed(
        code="out_of_memory",
        message=f"The job needs more memory than {limit} (LEVITY_JOB_MEMORY_LIMIT_BYTES). "
        "Give it less calibration or evaluation data, or a machine with more memory.",
        retryable=False,
    )


def gpu_out_of_memory(gpu_name: str) -> Failed:
    """What is said when a child could not get the memory it needs on its GPU.

    Args:
        gpu_name: The device, with its size; may be empty.
    """
    device = f"its GPU has ({gpu_name})" if gpu_name else "its GPU has"
    return Failed(
        code=gpu.OUT_OF_MEMORY,
        message=f"The job needs more memory than {device}. Give training.batch_size or the benchmark's batch a lower "
        "value, send it to the queue cpu, or use a GPU with more memory.",
        retryable=False,
    )


def of_dead_child(returncode: int, log_tail: str, address_space: int | None, *, gpu_name: str = "") -> JobFailed:
    """Say what ended a child that gave no answer.

    Args:
        returncode: As of `subprocess`; bubblewrap reports a signal n as 128 + n.
        log_tail: End of the child's standard error.
        address_space: The child's limit in bytes, or None.
        gpu_name: The device that it computed on; empty for the CPU.
    """
    number = -returncode if returncode < 0 else returncode - 128
    if number == signal.SIGKILL:
        return JobFailed(
            "child_killed",
            "The job's process was killed from outside (SIGKILL), most likely by the kernel because the machine ran "
            "out of memory.",
            retryable=True,
            log_tail=log_tail,
        )
    # Uncaught, the exception of a C++ library aborts, and Python's ends with status 1.
    if (number == signal.SIGABRT or returncode == 1) and gpu.says_out_of_memory(log_tail, on_gpu=bool(gpu_name)):
        answer = gpu_out_of_memory(gpu_name)
        return JobFailed(answer.code, answer.message, log_tail=log_tail)
    if (number == signal.SIGABRT or returncode == 1) and _ALLOCATION_FAILURE.search(log_tail):
        answer = out_of_memory(address_space)
        return JobFailed(answer.code, answer.message, log_tail=log_tail)
    try:
        how = f"by signal {signal.Signals(number).name}" if number > 0 else f"with exit status {returncode}"
    except ValueError:
        how = f"with exit status {returncode}"
    return JobFailed(
        "child_crashed",
        f"The job's process ended {how} before it had a result.",
        retryable=True,
        log_tail=log_tail,
    )
