"""The manifests of deploy/kubernetes: rendered by kubectl, read by the schemas of Kubernetes, and true to the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from catalog.jobs.states import Queue
from catalog.settings import Settings
from tests.deploy import compose
from tests.deploy.compose import ROOT
from tests.deploy.tools import run

# Of KEDA and the Prometheus operator, whose schemas no package brings.
FOREIGN = ("ScaledObject", "ServiceMonitor")
WORKLOADS = ("Deployment", "Job")
GRACE = "terminationGracePeriodSeconds"


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def manifests(request, tmp_path_factory):
    """All manifests of a folder, rendered."""
    tree = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(ROOT / "deploy/kubernetes", tree)
    subprocess.run([ROOT / "deploy/make-secrets.sh", tree / "overlays/example/secrets"], check=True, timeout=10)
    return list(yaml.safe_load_all(run("kubectl", "kustomize", str(tree / request.param))))


def of_kind(manifests, *kinds):
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] in kinds}


def pods(manifests):
    """The pod's spec of each workload, and its only container."""
    for name, workload in of_kind(manifests, *WORKLOADS).items():
        spec = workload["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        yield name, workload["spec"]["template"], spec, container


def test_the_schemas_of_kubernetes_take_them(manifests, tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(manifest for manifest in manifests if manifest["kind"] not in FOREIGN))
    run("kubernetes-validate", "--strict", "--quiet", str(path))


def test_pods_are_confined(manifests):
    for name, _, spec, container in pods(manifests):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 10001
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"memory"} <= set(container["resources"]["limits"])
        # What it writes to goes with the pod.
        assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {
            "/tmp",
            "/var/lib/levity",
        }


def test_settings_exist_and_secrets_are_files(manifests):
    (settings,) = of_kind(manifests, "ConfigMap").values()
    known = {f"LEVITY_{name.upper()}" for name in Settings.model_fields}
    environment = dict(settings["data"])
    assert set(environment) >= {"LEVITY_DATABASE_URL", "LEVITY_BROKER_URL", "LEVITY_STORE_URL"}
    assert environment["LEVITY_MIGRATE"] == "false"
    for _, _, spec, container in pods(manifests):
        environment |= {entry["name"]: entry["value"] for entry in container.get("env", ())}
        assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "secrets"]
        named = {path for name, path in environment.items() if name.endswith("_FILE")}
        made = set(of_kind(manifests, "Secret").get(volume["secret"]["secretName"], {}).get("data", ()))
        assert not made or {f"{mount['mountPath']}/{name}" for name in made} == named
    for name in environment:
        assert not name.startswith("LEVITY_") or name.removesuffix("_FILE") in known, name
    assert not re.search(r"//[^@/]+:[^@/]+@", json.dumps(environment)), "a URL with a password"


def test_workers_run_what_images_hold(manifests):
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    queues = set()
    for name, template, spec, container in pods(manifests):
        image = container["image"].rpartition("/")[2].partition(":")[0]
        assert image.removeprefix("levity-") in stages
        if "worker" in name:
            queue = container["args"][container["args"].index("--queue") + 1]
            queues.add(queue)
            assert (
                name
                == f"levity-worker-{queue}"
                == f"levity-{template['metadata']['labels']['app.kubernetes.io/component']}"
            )
            probe = compose.services()["worker-cpu"]["healthcheck"]["test"][1:]
            assert container["livenessProbe"]["exec"]["command"] == probe
            drain = {entry["name"]: entry["value"] for entry in container["env"]}.get("LEVITY_DRAIN_SECONDS")
            drain = float(drain or Settings.model_fields["drain_seconds"].default)
            assert spec[GRACE] > drain + Settings.model_fields["grace_seconds"].default
    assert queues >= {Queue.CPU, Queue.IO}


def test_selectors_find_pods(manifests):
    labels = [template["metadata"]["labels"] for _, template, *_ in pods(manifests)]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        if manifest["kind"] in ("Deployment", "PodDisruptionBudget", "NetworkPolicy"):
            wanted = selector["matchLabels"]
        elif manifest["kind"] == "Service":
            wanted = selector
        else:
            continue
        found = [one for one in labels if wanted.items() <= one.items()]
        assert found, manifest["metadata"]["name"]
        assert manifest["kind"] == "NetworkPolicy" or len(found) == 1


def test_one_scaler_for_each_deployment_that_scales(manifests):
    deployments = of_kind(manifests, "Deployment")
    scalers = [
        manifest["spec"]["scaleTargetRef"]["name"]
        for manifest in manifests
        if manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len(set(scalers)) == len(scalers)
    for name, deployment in deployments.items():
        assert ("replicas" in deployment["spec"]) != (name in scalers), name


def test_queries_ask_for_metrics_that_there_are(manifests):
    metrics = "".join(path.read_text() for path in (ROOT / "api").glob("*metrics.py"))
    for name, scaled in of_kind(manifests, "ScaledObject").items():
        for trigger in scaled["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            (metric,) = re.findall(r"levity_\w+", query)
            assert f'"{metric}"' in metrics
            assert f'queue="{name.removeprefix("levity-worker-")}"' in query


def test_the_migration_is_a_job_of_its_own(manifests):
    (job,) = of_kind(manifests, "Job").values()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == compose.services()["migrate"]["command"]
