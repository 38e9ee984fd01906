from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter

from api.datasets.schemas import CreateDataset
from api.errors import STATUS
from api.jobs.schemas import CreateJob
from api.keys.schemas import CreateKey, RotateKey
from api.models.schemas import CreateModel
from api.uploads.schemas import CompleteUpload, CreateUpload
from api.webhooks.schemas import CreateWebhook, UpdateWebhook

OPERATIONS = {
    "cancel_job",
    "complete_upload",
    "create_dataset",
    "create_job",
    "create_key",
    "create_model",
    "create_upload",
    "create_webhook",
    "delete_dataset",
    "delete_job",
    "delete_model",
    "delete_upload",
    "delete_webhook",
    "get_capabilities",
    "get_dataset",
    "get_job",
    "get_job_artifact",
    "get_key",
    "get_liveness",
    "get_metrics",
    "get_model",
    "get_model_content",
    "get_readiness",
    "get_upload",
    "get_usage",
    "get_webhook",
    "get_webhook_delivery",
    "head_job_artifact",
    "head_model_content",
    "head_upload",
    "list_audit_log",
    "list_datasets",
    "list_job_artifacts",
    "list_job_attempts",
    "list_job_events",
    "list_jobs",
    "list_keys",
    "list_models",
    "list_steps",
    "list_webhook_deliveries",
    "list_webhooks",
    "put_upload_content",
    "put_upload_part",
    "replay_webhook_delivery",
    "retry_job",
    "revoke_key",
    "rotate_key",
    "rotate_webhook_secret",
    "test_webhook",
    "update_webhook",
}


@pytest.fixture
def document(http):
    return http.get("/openapi.json").json()


def operations(document):
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_operations_have_stable_names(document):
    """A client is generated from these: changing one breaks its callers."""
    assert {operation["operationId"] for operation in operations(document)} == OPERATIONS
    assert len(operations(document)) == len(OPERATIONS)


def test_every_operation_is_described(document):
    tags = {tag["name"] for tag in document["tags"]}
    for operation in operations(document):
        assert operation["summary"]
        assert set(operation["tags"]) <= tags


def test_every_error_is_declared_as_a_problem(document):
    for operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], operation["operationId"]
                content = response["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                for code, example in content["examples"].items():
                    assert STATUS[code] == int(status) == example["value"]["status"]


def test_every_reference_leads_somewhere(document):
    for reference in set(re.findall(r"'\$ref': '([^']+)'", str(document))):
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target


@pytest.mark.parametrize(
    "body",
    [
        CreateUpload,
        CompleteUpload,
        CreateModel,
        CreateDataset,
        CreateJob,
        CreateWebhook,
        UpdateWebhook,
        CreateKey,
        RotateKey,
    ],
)
def test_examples_of_requests_are_true(body):
    examples = body.model_config["json_schema_extra"]["examples"]
    assert examples
    for example in examples:
        TypeAdapter(body).validate_python(example)


def test_examples_of_responses_are_true(document):
    """Those that stand in the document validate against the classes that it was made from."""
    from api.jobs import schemas as jobs
    from api.models import schemas as models
    from api.uploads import schemas as uploads
    from api.webhooks import schemas as webhooks

    for schema in (uploads.Upload, models.Model, jobs.Job, webhooks.Webhook):
        examples = document["components"]["schemas"][schema.__name__]["examples"]
        assert examples
        for example in examples:
            schema.model_validate(example)


def test_the_interactive_documentation_needs_no_internet(http):
    page = http.get("/docs")
    assert page.status_code == 200
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert links
    for link in links:
        assert link.startswith("/")
        assert http.get(link).status_code == 200
    assert not re.findall(r"https?://", page.text)


def test_steps_describe_themselves(http):
    steps = http.get("/v1/steps").json()
    names = [(step["type"], step["mode"]) for step in steps["steps"]]
    assert names == [
        ("distill", None),
        ("prune", None),
        ("prune_channels", None),
        ("factorize", None),
        ("finetune", None),
        ("cluster", None),
        ("quantize", "dynamic"),
        ("quantize", "static"),
        ("quantize", "weight_only"),
        ("quantize", "float16"),
        ("quantize", "bfloat16"),
        ("quantize", "qat"),
        ("encode", None),
    ]
    prune = steps["steps"][1]
    assert prune["schema"]["properties"]["amount"]["description"].startswith("Share of weights")
    assert prune["defaults"]["scope"] == "layer"
    assert "least important" in prune["description"]
    assert "oneOf" in steps["pipeline"] or "anyOf" in steps["pipeline"]
