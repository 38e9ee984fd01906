"""The confined process: damaged files, one after the other, to the functions that a job's child calls.

    python -m tests.fuzz.child '<JSON>'

For each file two lines go to standard output: the event that a worker would read, and `#` with the file's number, its
processor time in seconds and the process's peak memory in KiB.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from compression.graph.limits import DEFAULT_LIMITS
from tests.fuzz.formats import make
from workers import execution
from workers.protocol import REQUEST_FILE, Limits, Request, write_event
from workers.runner import _impose

# Converting weights exports a network, which takes a second: done for one in so many, the others are read alone.
_CONVERTED = 25


def main(config: dict[str, object]) -> None:
    address_space = int(config["address_space"])
    _impose(Limits(address_space=address_space, processes=None, niceness=0, die_with=None))
    line = os.dup(1)
    os.dup2(2, 1)
    kind, seed, onnx_seeds = str(config["kind"]), int(config["seed"]), [*_read_seeds(Path("seeds"))]
    for index in range(int(config["start"]), int(config["end"])):
        case = make(kind, seed, index, onnx_seeds)
        folder = Path("in/model")
        shutil.rmtree("in", ignore_errors=True)
        shutil.rmtree("out", ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in case.files.items():
            (folder / name).write_bytes(data)
        started = time.process_time()
        if "source" in case.request and index % _CONVERTED:
            _read_weights(line, folder / next(iter(case.files)), address_space)
        else:
            Path(REQUEST_FILE).write_text(Request(**case.request).model_dump_json())
            execution.serve(line, address_space)
        used = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(line, f"#{index} {used:.4f} {peak}\n".encode())


def _read_seeds(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def _read_weights(line: int, path: Path, address_space: int) -> None:
    from compression.graph.architectures.state_dict import read_state_dict

    try:
        read_state_dict(path, DEFAULT_LIMITS)
        answer = b'{"type": "read"}\n'
    except Exception as error:  # noqa: BLE001 - as `execution.serve` does
        answer = write_event(execution._failure(error, address_space, ""))
    os.write(line, answer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
