"""Writing the report and the manifest into a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from compression.context import Context
from compression.report.manifest import manifest
from compression.report.page import page
from compression.result import PipelineResult
from compression.spec import PipelineSpec


def write_report(folder: Path, result: PipelineResult, spec: PipelineSpec) -> None:
    """Write `report.html`, one self-contained page, into an existing folder."""
    (folder / "report.html").write_text(page(result, spec), encoding="utf-8")


def write_manifest(
    folder: Path,
    result: PipelineResult,
    spec: PipelineSpec,
    context: Context,
    *,
    model_sha256: str,
    data_sha256: Mapping[str, str],
    step_keys: Sequence[str] = (),
) -> None:
    """Write `manifest.json` into an existing folder; see `compression.report.manifest.manifest`."""
    content = manifest(result, spec, context, model_sha256=model_sha256, data_sha256=data_sha256, step_keys=step_keys)
    (folder / "manifest.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
