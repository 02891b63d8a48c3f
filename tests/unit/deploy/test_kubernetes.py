"""The Kubernetes manifests, against the schemas of what they are sent to."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from contracts.names import COMPRESSION_POOL

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.30"

# What KEDA 2 says of the fields that are used here: https://keda.sh/docs/latest/reference/scaledobject-spec/
KEDA = {
    "ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {"type": "object", "required": ["name"]},
            **{
                name: {"type": "integer", "minimum": 0}
                for name in ("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod")
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"const": "postgresql"},
                        "authenticationRef": {"type": "object", "required": ["name"]},
                        "metadata": {
                            "type": "object",
                            "required": ["query", "targetQueryValue"],
                            "propertyNames": {"enum": ["query", "targetQueryValue", "activationTargetQueryValue"]},
                            "additionalProperties": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
    "TriggerAuthentication": {
        "type": "object",
        "required": ["secretTargetRef"],
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["parameter", "name", "key"],
                    "additionalProperties": {"type": "string"},
                },
            }
        },
    },
}


def documents(folder: str) -> Iterator[dict[str, Any]]:
    """What a folder's kustomization names."""
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    for resource in kustomization["resources"]:
        path = FOLDER / folder / resource
        if path.is_file():
            yield from yaml.safe_load_all(path.read_text())
        else:
            yield from documents(f"{folder}/{resource}")


BASE = list(documents("base"))
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]["spec"]
    for document in BASE
    if document["kind"] in ("Deployment", "Job")
}


def images(documents: list[dict[str, Any]]) -> set[str]:
    """What the containers of all pods are made of."""
    pods = [d["spec"]["template"]["spec"] for d in documents if d["kind"] in ("Deployment", "Job")]
    return {container["image"] for pod in pods for container in pod["containers"]}


def rendered(folder: Path) -> list[dict[str, Any]]:
    """What kubectl would apply."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def overlay() -> dict[str, Any]:
    """The kustomization that the guide shows."""
    guide = (ROOT / "docs" / "how-to" / "production.md").read_text()
    found = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)]
    (kustomization,) = [document for document in found if "resources" in document]
    return dict(kustomization)


@pytest.mark.parametrize("document", BASE, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}")
def test_the_cluster_takes_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_every_file_is_named_and_a_patch_is_a_whole_resource_once_applied() -> None:
    for folder in ("base", "keda"):
        named = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["resources"]
        files = {file.name for file in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {name for name in named if name.endswith(".yaml")}
    patch = yaml.safe_load((FOLDER / "gpu" / "worker.yaml").read_text())
    worker = next(d for d in BASE if (d["kind"], d["metadata"]["name"]) == ("Deployment", "worker"))
    assert (patch["kind"], patch["metadata"]) == ("Deployment", {"name": "worker"})
    assert [c["name"] for c in patch["spec"]["template"]["spec"]["containers"]] == [
        c["name"] for c in worker["spec"]["template"]["spec"]["containers"]
    ]
    patch["spec"]["selector"] = worker["spec"]["selector"]
    patch["spec"]["template"]["metadata"] = worker["spec"]["template"]["metadata"]
    kubernetes_validate.validate(patch, VERSION, strict=True)
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    """The restricted level of Pod Security, and a root file system that nobody writes to."""
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert (rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (False, True)
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} == set(container["resources"]["requests"])


def test_secrets_are_referred_to_and_workers_have_the_time_to_leave() -> None:
    for name, pod in PODS.items():
        for container in pod["containers"]:
            for variable in container["env"]:
                if variable["name"].endswith(("_URL", "_KEY", "_PASSWORD")):
                    assert variable["valueFrom"]["secretKeyRef"]["name"] == "batchmill", name
            if not name.startswith("migrate"):
                assert "readinessProbe" in container
    assert {document["kind"] for document in BASE}.isdisjoint({"Secret"})
    for name in ("worker", "compressor"):
        assert PODS[name]["terminationGracePeriodSeconds"] >= 35
    for name in ("worker", "compressor", "beat", "deliver", "runner"):
        (container,) = PODS[name]["containers"]
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}, name
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}, name
        ports = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert container["ports"] == [{"name": "metrics", "containerPort": int(ports["BATCHMILL_METRICS_PORT"])}], name


def test_the_overlay_of_the_guide_renames_each_image(overlay: dict[str, Any]) -> None:
    assert {image["name"] for image in overlay["images"]} == images(BASE)
    for folder in ("base", "gpu", "keda"):  # one that is renamed below it is no more called what the overlay expects
        kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
        assert all("newName" not in image for image in kustomization.get("images", ()))


@pytest.mark.parametrize("folder", ["base", "gpu", "keda"])
def test_kubectl_renders_it_and_the_overlay_of_the_guide_above_it(
    folder: str, overlay: dict[str, Any], tmp_path: Path
) -> None:
    plain = rendered(FOLDER / folder)
    assert images(plain) == {"batchmill-client:0.1.0", "batchmill-worker:0.1.0"}
    for document in plain:
        if document["apiVersion"].partition("/")[0] != "keda.sh":
            kubernetes_validate.validate(document, VERSION, strict=True)
    (worker,) = [d for d in plain if (d["kind"], d["metadata"]["name"]) == ("Deployment", "worker")]
    assert ("replicas" in worker["spec"]) is (folder != "keda")
    limits = worker["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (1 if folder == "gpu" else None)

    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ours").mkdir()
    ours = {**overlay, "resources": [f"../{folder}"]}
    (tmp_path / "ours" / "kustomization.yaml").write_text(yaml.safe_dump(ours))
    over = rendered(tmp_path / "ours")
    assert images(over) == {f"{image['newName']}:{image['newTag']}" for image in overlay["images"]}
    (config,) = [document for document in over if document["kind"] == "ConfigMap"]
    assert config["data"]["BATCHMILL_ARTIFACTS"] == "s3://our-bucket/models"
    assert config["data"]["BATCHMILL_LOG_FORMAT"] == "json"


def test_the_scaler_is_one_that_keda_knows() -> None:
    own = [document for document in documents("keda") if document["apiVersion"] == "keda.sh/v1alpha1"]
    assert {document["kind"] for document in own} == set(KEDA)
    for document in own:
        jsonschema.validate(document["spec"], KEDA[document["kind"]])
    scaler = next(document["spec"] for document in own if document["kind"] == "ScaledObject")
    (trigger,) = scaler["triggers"]
    counted = scaler["maxReplicaCount"] * int(trigger["metadata"]["targetQueryValue"])
    assert trigger["metadata"]["query"].count(f"LIMIT {counted}") == 2
    assert scaler["scaleTargetRef"]["name"] == "worker"
    assert scaler["minReplicaCount"] == 1  # ticks run in workers


def test_compressions_have_workers_of_their_own() -> None:
    (container,) = PODS["compressor"]["containers"]
    assert {"name": "BATCHMILL_POOL", "value": COMPRESSION_POOL} in container["env"]
    assert container["command"] == ["batchmill", "worker"]
