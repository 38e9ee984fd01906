"""The library's own command line: `python -m compression run | inspect | convert | decode | steps`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from compression.context import Context
from compression.data_spec import ImagePreprocessing
from compression.errors import CompressionError
from compression.graph.architectures.spec import ModelSource
from compression.spec import PipelineSpec, Step


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line `code: message` on standard error and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except CompressionError as error:
        return _fail(error.code, error.message)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        return _fail("invalid_spec", f"{where}: {first['msg']}")
    except OSError as error:
        return _fail("file_error", str(error))
    return 0


def _fail(code: str, message: str) -> int:
    print(f"{code}: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - this is a command line
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compression", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="apply a pipeline to a model and leave the results in a folder")
    run.add_argument("model", type=Path, help="ONNX file; external data lies beside it")
    run.add_argument("--spec", type=Path, required=True, help="JSON file with the pipeline: steps, benchmark, seed")
    run.add_argument("--calibration", type=Path, help="dataset for activation ranges (safetensors, npz, zip)")
    run.add_argument("--training", type=Path, help="dataset that steps which train learn from")
    run.add_argument("--evaluation", type=Path, help="dataset for accuracy and agreement")
    run.add_argument("--images", type=Path, help="JSON file that says how pictures become samples")
    run.add_argument("--threads", type=int, default=0, help="threads of the runtime; 0 lets it choose")
    run.add_argument("--out", type=Path, required=True, help="folder for the results, made where it is missing")
    run.set_defaults(command=_run)
    inspect = commands.add_parser("inspect", help="print what a model is, as JSON")
    inspect.add_argument("model", type=Path)
    inspect.set_defaults(command=_inspect)
    convert = commands.add_parser("convert", help="make an ONNX file of a state_dict and its architecture")
    convert.add_argument(
        "weights", type=Path, help="safetensors, or a .pt file of torch.save; load none that you mistrust"
    )
    convert.add_argument(
        "--source", type=Path, required=True, help="JSON file: architecture (name and arguments, or layers) and input"
    )
    convert.add_argument("--out", type=Path, required=True, help="folder for model.onnx and what belongs beside it")
    convert.set_defaults(command=_convert)
    decode = commands.add_parser("decode", help="make the ONNX file again that a .levity file was coded from")
    decode.add_argument("coded", type=Path, help=".levity file")
    decode.add_argument("model", type=Path, help="ONNX file to write")
    decode.set_defaults(command=_decode)
    steps = commands.add_parser("steps", help="print the JSON Schema of every step")
    steps.set_defaults(command=_steps)
    return parser


def _run(options: argparse.Namespace) -> None:
    spec = PipelineSpec.model_validate_json(options.spec.read_bytes())
    images = ImagePreprocessing.model_validate_json(options.images.read_bytes()) if options.images else None
    # Imported late: `steps`, `--help` and a mistaken spec answer at once.
    from compression.data import DataSource  # noqa: PLC0415
    from compression.pipeline import ROLES, run  # noqa: PLC0415

    data = {role: DataSource(path, images=images) for role in ROLES if (path := getattr(options, role)) is not None}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compression-") as folder:
        context = Context(workdir=Path(folder), threads=options.threads, progress=_show)
        result = run(options.model, spec, context, data)
        for artifact in result.artifacts:
            shutil.copyfile(Path(folder) / "out" / artifact.name, options.out / artifact.name)
    print(result.model_dump_json(indent=2))  # noqa: T201


def _show(phase: str, fraction: float, message: str = "") -> None:
    print(f"{fraction:4.0%} {phase} {message}".rstrip(), file=sys.stderr)  # noqa: T201


def _inspect(options: argparse.Namespace) -> None:
    from compression.graph.inspect import inspect_model  # noqa: PLC0415

    print(inspect_model(options.model).model_dump_json(indent=2))  # noqa: T201


def _convert(options: argparse.Namespace) -> None:
    source = ModelSource.model_validate_json(options.source.read_bytes())
    from compression.graph.architectures.convert import convert  # noqa: PLC0415

    print(convert(options.weights, source, options.out).summary.model_dump_json(indent=2))  # noqa: T201


def _decode(options: argparse.Namespace) -> None:
    from compression.coding.decode import decode  # noqa: PLC0415

    options.model.write_bytes(decode(options.coded.read_bytes()))


def _steps(_: argparse.Namespace) -> None:
    adapter: TypeAdapter[Step] = TypeAdapter(Step)
    print(json.dumps(adapter.json_schema(), indent=2))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
