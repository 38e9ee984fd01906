"""The manifest: everything needed to say where a result came from, and to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from compression.context import Context
from compression.report.environment import environment
from compression.result import PipelineResult
from compression.spec import PipelineSpec

_VERSION = 1


def manifest(
    result: PipelineResult,
    spec: PipelineSpec,
    context: Context,
    *,
    model_sha256: str,
    data_sha256: Mapping[str, str],
    step_keys: Sequence[str] = (),
) -> dict[str, object]:
    """Origin, spec, surroundings and files of a run, ready for JSON.

    Args:
        result: Its `artifacts` are those that the manifest vouches for; the manifest itself cannot be among them.
        spec: What was asked for.
        context: Where it ran.
        model_sha256: Hash of the original as uploaded.
        data_sha256: Hashes of the datasets by role.
        step_keys: Cache keys of the steps (`compression.cache.step_keys`), where they are known.
    """
    finished = datetime.now(UTC)
    hashes = {artifact.name: artifact.sha256 for artifact in result.artifacts}
    return {
        "manifest_version": _VERSION,
        "started": (finished - timedelta(seconds=result.seconds)).isoformat(timespec="milliseconds"),
        "finished": finished.isoformat(timespec="milliseconds"),
        "seconds": result.seconds,
        "lineage": {
            "original": {"sha256": model_sha256, "bytes": result.model.file_bytes, "producer": result.model.producer},
            "data": {
                role: {"sha256": data_sha256[role], "bytes": summary.bytes, "samples": summary.samples}
                for role, summary in result.data.items()
            },
            "steps": [
                {
                    "type": step.type,
                    "seconds": step.seconds,
                    "cached": step.cached,
                    "key": step_keys[step.index] if step_keys else None,
                }
                for step in result.steps
            ],
            "result": {"sha256": hashes.get("model.onnx"), "bytes": result.compressed.file_bytes},
        },
        "seed": spec.seed,
        "spec": spec.model_dump(mode="json"),
        "environment": {"device": context.device, "threads": context.threads, **environment()},
        "artifacts": [artifact.model_dump(mode="json") for artifact in result.artifacts],
    }
