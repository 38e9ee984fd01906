"""The `levity` command."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from levity._webhook_commands import add_commands
from levity.client import Levity
from levity.compress import check_succeeded, compress, watch
from levity.console import summary, table
from levity.demo import demo
from levity.errors import LevityError
from levity.serve import serve

_DEFAULT_URL = "http://127.0.0.1:8000"
_EXIT_REFUSED = 1
_EXIT_UNREACHABLE = 3
_EXIT_INTERRUPTED = 130

_DESCRIPTION = """\
Take weight off neural networks: prune, cluster, quantize, and measure the result against the original.

`levity demo` shows it on a small real model. `levity serve` starts the service on this machine;
the other commands talk to a running one (--url or LEVITY_URL, by default http://127.0.0.1:8000)
and send LEVITY_API_KEY where it is set."""

_EPILOG = """\
exit status: 0 done, 1 refused or the job did not succeed, 2 wrong usage, 3 the service does not answer,
130 interrupted"""

_COMPRESS_EXAMPLE = """\
example:
  levity compress model.onnx --calibration calibration.npz --evaluation test.npz --out smaller \\
      --step '{"type": "prune", "amount": 0.5}' --step '{"type": "quantize", "mode": "static"}'
  levity compress weights.safetensors --architecture torchvision:mobilenet_v2 --out smaller \
      --step '{"type": "prune", "amount": 0.5}'

All steps with their fields and defaults: GET /v1/steps of the running service."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except LevityError as error:
        sys.stderr.write(f"levity: {error}\n")
        return _EXIT_UNREACHABLE if error.code == "unreachable" else _EXIT_REFUSED
    except OSError as error:
        sys.stderr.write(f"levity: {error}\n")
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        sys.stderr.write("levity: interrupted\n")
        return _EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("levity", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    remote = argparse.ArgumentParser(add_help=False)
    remote.add_argument(
        "--url", default=os.environ.get("LEVITY_URL", _DEFAULT_URL), help="where the service answers (%(default)s)"
    )

    command = commands.add_parser("serve", help="run the whole service on this machine")
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (%(default)s); beyond loopback keys are needed"
    )
    command.add_argument("--port", type=_port, default=8000, help="TCP port, 0 for a free one (%(default)s)")
    command.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("LEVITY_DATA_DIR", "levity-data")),
        help="folder for all that is kept (%(default)s)",
    )
    command.add_argument("--no-worker", action="store_true", help="the API alone")
    command.add_argument(
        "--api-processes", type=int, choices=range(1, 65), default=1, metavar="N", help="processes of the API (1)"
    )
    command.set_defaults(run=_serve)

    command = commands.add_parser("demo", help="compress a small real model and show before and after")
    command.add_argument("--out", type=Path, default=Path("demo-report"), help="folder for the report (%(default)s)")
    command.add_argument("--data-dir", type=Path, help="keep the service's data here (default: a temporary folder)")
    command.set_defaults(run=lambda options: demo(out=options.out, data_dir=options.data_dir))

    command = commands.add_parser(
        "compress",
        parents=[remote],
        help="compress a model with a running service",
        epilog=_COMPRESS_EXAMPLE,
        formatter_class=raw,
    )
    command.add_argument(
        "model", metavar="MODEL", type=Path, help="ONNX file; with --architecture safetensors or a torch state_dict"
    )
    command.add_argument(
        "--architecture",
        metavar="NAME|JSON",
        type=_architecture,
        help="network of a state_dict: torchvision:resnet18, or an object with name and arguments, or with layers",
    )
    command.add_argument(
        "--input", metavar="JSON", type=_object, help='what it takes without the batch axis: {"shape": [3, 224, 224]}'
    )
    steps = command.add_mutually_exclusive_group(required=True)
    steps.add_argument(
        "--step", metavar="JSON", type=_object, action="append", help="a step; repeat for more, in order"
    )
    steps.add_argument("--pipeline", metavar="FILE", type=Path, help="JSON file with the list of steps")
    command.add_argument("--calibration", metavar="FILE", type=Path, help="dataset to read activation ranges from")
    command.add_argument("--training", metavar="FILE", type=Path, help="dataset that steps which train learn from")
    command.add_argument("--evaluation", metavar="FILE", type=Path, help="dataset to measure accuracy on")
    command.add_argument("--images", metavar="JSON", type=_object, help="how pictures become samples, for zips of them")
    command.add_argument(
        "--external-data", metavar="FILE", type=Path, action="append", default=[], help="file with the model's weights"
    )
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for what comes out")
    command.set_defaults(run=_compress)

    jobs = commands.add_parser("jobs", help="list, show, wait for or cancel jobs").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    command = jobs.add_parser("list", parents=[remote], help="newest first")
    command.add_argument("--state", help="only those in this state")
    command.add_argument("--limit", type=int, default=20, help="at most so many (%(default)s)")
    command.set_defaults(run=_jobs_list)
    for name, action, text in (
        ("show", _jobs_show, "one job as JSON"),
        ("wait", _jobs_wait, "wait until it ends, then show its numbers"),
        ("cancel", _jobs_cancel, "ask it to stop"),
    ):
        command = jobs.add_parser(name, parents=[remote], help=text)
        command.add_argument("job", metavar="JOB", help="the job's id")
        command.set_defaults(run=action)

    add_commands(commands, remote)

    for noun, text in (("keys", "make, list, rotate, revoke API keys"), ("tenants", "make, limit and list tenants")):
        command = commands.add_parser(
            noun, add_help=False, help=f"{text}, on the database of this machine's settings (LEVITY_*)"
        )
        command.add_argument("rest", nargs=argparse.REMAINDER)
        command.set_defaults(run=_on_database, noun=noun)

    command = commands.add_parser("version", help="this release's number")
    command.set_defaults(run=_version)
    return parser


def _serve(options: argparse.Namespace) -> int:
    return serve(
        host=options.host,
        port=options.port,
        data_dir=options.data_dir,
        workers=not options.no_worker,
        api_processes=options.api_processes,
    )


def _compress(options: argparse.Namespace) -> int:
    roles = {"calibration": options.calibration, "training": options.training, "evaluation": options.evaluation}
    with Levity(options.url) as levity:
        job = compress(
            levity,
            options.model,
            options.step or _read_pipeline(options.pipeline),
            out=options.out,
            data_files={role: file for role, file in roles.items() if file is not None},
            external_data=options.external_data,
            images=options.images,
            architecture=options.architecture,
            model_input=options.input,
        )
    files = ", ".join(sorted(artifact.name for artifact in job.artifacts))
    sys.stdout.write(f"{summary(job)}\n\nIn {options.out}: {files}.\n")
    return 0


def _jobs_list(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        rows = [("id", "state", "progress", "created", "name")]
        rows += [
            (job.id, job.state, f"{job.progress:.0%}", job.created_at or "", job.name or "")
            for job in itertools.islice(levity.jobs(state=options.state), options.limit)
        ]
    sys.stdout.write("\n".join(table(rows)) + "\n")
    return 0


def _jobs_show(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        sys.stdout.write(json.dumps(levity.get_job(options.job).raw, indent=2) + "\n")
    return 0


def _jobs_wait(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        job = watch(levity, options.job)
    check_succeeded(job)
    sys.stdout.write(summary(job) + "\n")
    return 0


def _jobs_cancel(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        job = levity.cancel(options.job)
    asked = not job.terminal
    sys.stdout.write(f"{job.id} is {job.state}{', and was asked to stop' if asked else ''}.\n")
    return 0


def _on_database(options: argparse.Namespace) -> int:
    """The service's own command, in a process of its own: the client has none of the service's packages."""
    if importlib.util.find_spec("catalog") is None or importlib.util.find_spec("sqlalchemy") is None:
        raise LevityError("not_installed", "The service is not installed here: pip install 'levity[serve]'.")
    command = [sys.executable, "-P", "-m", "catalog", options.noun, *options.rest]
    return subprocess.run(command, check=False).returncode  # noqa: S603 - our own module


def _version(_options: argparse.Namespace) -> int:
    sys.stdout.write(f"levity {version('levity')}\n")
    return 0


def _read_pipeline(path: Path) -> list[dict[str, Any]]:
    try:
        pipeline = json.loads(path.read_text())
    except ValueError as error:
        raise LevityError("bad_pipeline", f"{path} is not JSON: {error}.") from error
    if not isinstance(pipeline, list) or not all(isinstance(step, dict) for step in pipeline):
        raise LevityError("bad_pipeline", f"{path} must hold a list of steps, each an object with a `type`.")
    return pipeline


def _architecture(text: str) -> str | dict[str, Any]:
    return _object(text) if text.lstrip().startswith("{") else text


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"not a port number: {text}")
    return int(text)
