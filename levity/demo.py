"""`levity demo`: start the service, compress a real model through HTTP, show before and after."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from levity.client import Levity
from levity.compress import compress
from levity.console import summary
from levity.errors import LevityError
from levity.service import Service

_EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "digits"
_PIPELINE = (
    {
        "type": "prune",
        "amount": 0.9,
        "scope": "global",
        "schedule": "gradual",
        "training": {"epochs": 20, "batch_size": 32, "learning_rate": 0.003, "teacher": "original"},
    },
    {"type": "quantize", "mode": "static"},
)


def demo(*, out: Path, data_dir: Path | None) -> int:
    """Compress the digits model; the report lands in `out`, the service's data in `data_dir` or a temporary folder."""
    model = _EXAMPLES / "digits-cnn.onnx"
    if not model.exists():
        raise LevityError(
            "no_examples",
            f"The demo's model is in Levity's repository, not in {_EXAMPLES}: clone it and run `make demo`.",
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="levity-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context((folder / "service.log").open("a", buffering=1))
        sys.stdout.write("Starting the service ... ")
        sys.stdout.flush()
        try:
            service = stack.enter_context(Service(folder, log=lambda line: print(line, file=log), inherit=False))
            sys.stdout.write(
                f"{service.url}\nCompressing {model.name}: "
                "nine weights of ten pruned while it trains, then static int8.\n"
            )
            sys.stdout.flush()
            with Levity(service.url) as levity:
                job = compress(
                    levity,
                    model,
                    _PIPELINE,
                    out=out,
                    data_files={
                        "calibration": _EXAMPLES / "calibration.npz",
                        "training": _EXAMPLES / "training.npz",
                        "evaluation": _EXAMPLES / "evaluation.npz",
                    },
                )
        except LevityError:
            sys.stderr.write((folder / "service.log").read_text()[-4000:])
            raise
    files = ", ".join(sorted(artifact.name for artifact in job.artifacts))
    sys.stdout.write(f"\n{summary(job)}\n\nThe report is {out / 'report.html'}; beside it: {files}.\n")
    return 0
