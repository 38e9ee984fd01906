"""Levity's client: `Levity(base_url)` talks to a running service."""

from __future__ import annotations

from levity.client import Levity
from levity.errors import LevityError
from levity.resources import Artifact, Dataset, Delivery, Event, Job, Metric, Model, Upload, Webhook

__all__ = [
    "Artifact",
    "Dataset",
    "Delivery",
    "Event",
    "Job",
    "Levity",
    "LevityError",
    "Metric",
    "Model",
    "Upload",
    "Webhook",
]
