"""What the API costs before anybody asks for anything.

Compares nothing; prints the time of `import api.app` in fresh processes, whether a heavy library came with it, and the
resident memory of an idle API process.
"""

from __future__ import annotations

import subprocess
import sys
import time

from service import median, resident_bytes, running_service, table

_PROBE = """
import sys, time
start = time.perf_counter()
import api.app
print(time.perf_counter() - start, *sorted({"torch", "onnxruntime", "onnx", "numpy"} & set(sys.modules)))
"""


def main() -> None:
    seconds, heavy = [], set()
    for _ in range(9):
        words = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(float(words[0]))
        heavy |= set(words[1:])
    with running_service("--no-worker") as service:
        time.sleep(2)
        idle = resident_bytes(service.pid_of("uvicorn"))
    print(
        table(
            [
                ("what", "measured", "at most"),
                ("import api.app, median of 9", f"{median(seconds):.2f} s", "1 s"),
                ("heavy libraries imported with it", ", ".join(sorted(heavy)) or "none", "none"),
                ("idle API process, resident", f"{idle / 1e6:.0f} MB", "150 MB"),
            ]
        )
    )


if __name__ == "__main__":
    main()
