"""deploy/kubernetes is what KubeRay takes, and all that its parts name is there: files, flags, volumes, ports."""

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import mlflow.cli
import pytest
import requests
import yaml
from mlflow.server.security_utils import is_allowed_host_header

from cataloger.config import ServeConfig
from conftest import ROOT, SHARED, free_of_ray
from servers import BIN, free_port, kill_with_descendants, wait_for

FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = SHARED.parent / "kuberay"
VARIANTS = ["base", "laptop", "gpu"]
# What a person makes, and no file holds.
SECRETS = {"cataloger-s3", "cataloger-live"}
JOBS_IN_IMAGE = "/opt/cataloger/"
PART = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
Object = dict[str, Any]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def rendered(variant: str) -> list[Object]:
    """What `kubectl apply -k` would send. The base is read without kustomize, so that it is tested where there is no kubectl."""
    if variant != "base":
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl, which renders the overlays, is not on this machine")
        command = ["kubectl", "kustomize", str(FOLDER / "overlays" / variant)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))
    listed = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())
    objects = [
        each for name in listed["resources"] for each in yaml.safe_load_all((FOLDER / "base" / name).read_text())
    ]
    for generated in listed["configMapGenerator"]:
        lines = "\n".join((FOLDER / "base" / name).read_text() for name in generated["envs"]).splitlines()
        data = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        objects.append({"kind": "ConfigMap", "metadata": {"name": generated["name"]}, "data": data})
    return objects


def of_kind(variant: str, *kinds: str) -> list[Object]:
    return [each for each in rendered(variant) if each["kind"] in kinds]


def the(variant: str, kind: str, name: str) -> Object:
    (found,) = (each for each in of_kind(variant, kind) if each["metadata"]["name"] == name)
    return found


def settings(variant: str) -> dict[str, str]:
    return dict(the(variant, "ConfigMap", "cataloger-settings")["data"])


def clusters(variant: str) -> dict[str, Object]:
    """The Ray cluster of each of Ray's resources, by the kind of that."""
    places = {
        "RayCronJob": lambda spec: spec["jobTemplate"]["rayClusterSpec"],
        "RayJob": lambda spec: spec["rayClusterSpec"],
        "RayService": lambda spec: spec["rayClusterConfig"],
    }
    return {kind: find(each["spec"]) for kind, find in places.items() for each in of_kind(variant, kind)}


def jobs(variant: str) -> dict[str, Object]:
    """What KubeRay makes a RayJob of, by the kind that it is in."""
    (night,), (training,) = of_kind(variant, "RayCronJob"), of_kind(variant, "RayJob")
    return {"RayCronJob": night["spec"]["jobTemplate"], "RayJob": training["spec"]}


def pods(variant: str) -> list[Object]:
    """The template of every pod: with its labels in `metadata`, and what runs in `spec`."""
    found = [each["spec"]["template"] for each in of_kind(variant, "Deployment", "Job")]
    found += [job["submitterPodTemplate"] for job in jobs(variant).values()]
    for cluster in clusters(variant).values():
        found += [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return found


def containers(variant: str) -> Iterator[tuple[Object, Object]]:
    """(pod, container)"""
    for pod in pods(variant):
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield pod, container


# --- KubeRay's schemas ---


@functools.cache
def schema(kind: str) -> Object:
    """That of the version v1, made strict. Kubernetes forgets fields that a schema does not know, and says nothing."""
    file = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's schemas are not on this machine: {file}")
    definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]
    (version,) = (each for each in definition["versions"] if each["name"] == "v1")
    assert version["served"]
    made: Object = strict(version["schema"]["openAPIV3Schema"])
    made["properties"]["metadata"].pop("additionalProperties")  # Kubernetes' own
    return made


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


def check(kind: str, each: Object) -> None:
    jsonschema.Draft202012Validator(schema(kind)).validate(each)


@every_variant
@pytest.mark.parametrize("kind", ["RayCronJob", "RayJob", "RayService"])
def test_it_is_what_kuberay_takes(variant: str, kind: str) -> None:
    (each,) = of_kind(variant, kind)
    check(kind, each)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((), "concurrencyPolicy"),  # of Kubernetes' own CronJob: KubeRay's has none
        (("jobTemplate",), "activeDeadlineSecond"),
        (("jobTemplate", "rayClusterSpec", "headGroupSpec", "template", "spec"), "terminationGracePeriod"),
        (("jobTemplate", "rayClusterSpec", "headGroupSpec", "template", "metadata"), "label"),
        (("jobTemplate", "deletionStrategy", "deletionRules", 0, "condition"), "ttlsSeconds"),
    ],
)
def test_a_field_that_kubernetes_would_forget_is_found(path: tuple[str | int, ...], name: str) -> None:
    (night,) = of_kind("base", "RayCronJob")
    wrong = json.loads(json.dumps(night))
    inner = wrong["spec"]
    for step in path:
        inner = inner[step]
    inner[name] = 1
    with pytest.raises(jsonschema.ValidationError, match=f"'{name}' was unexpected"):
        check("RayCronJob", wrong)


@every_variant
def test_what_kuberay_checks_beyond_its_schemas(variant: str) -> None:
    """ValidateRayJobSpec, ValidateRayClusterSpec and ValidateRayServiceSpec of its version 1.7.0."""
    lengths = {"RayCronJob": 36, "RayJob": 47, "RayService": 47}
    for each in of_kind(variant, *lengths):
        name = each["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= lengths[each["kind"]]
    for job in jobs(variant).values():
        rules = job.get("deletionStrategy", {}).get("deletionRules", [])
        assert bool(rules) != job.get("shutdownAfterJobFinishes", False), "one of them removes the cluster"
        assert rules or job["ttlSecondsAfterFinished"] > 0
        seen: dict[tuple[str, str], dict[str, int]] = {}
        for rule in rules:
            (key,) = rule["condition"].keys() - {"ttlSeconds"}
            seen.setdefault((key, rule["condition"][key]), {})[rule["policy"]] = rule["condition"]["ttlSeconds"]
        assert all(found["DeleteCluster"] <= found["DeleteSelf"] for found in seen.values())
        assert sum(map(len, seen.values())) == len(rules), "none is there twice"
        # With one of its own, a submitter would not run the entrypoint.
        assert "command" not in job["submitterPodTemplate"]["spec"]["containers"][0]
    for cluster in clusters(variant).values():
        assert cluster["authOptions"] == {"mode": "token"}
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


# --- versions, command lines, flags ---


@every_variant
def test_ray_is_the_one_that_the_image_holds(variant: str) -> None:
    (ray,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {cluster["rayVersion"] for cluster in clusters(variant).values()} == {ray}


def expanded(text: str, known: dict[str, str]) -> list[str]:
    """As the shell that runs an entrypoint has it, and Kubernetes the arguments of a container; an unknown name is an error."""
    return [re.sub(r"\$\(?(\w+)\)?", lambda found: known[found[1]], word) for word in shlex.split(text)]


def job_lines(variant: str) -> list[list[str]]:
    lines = [job["entrypoint"] for job in jobs(variant).values()]
    lines += [
        shlex.join([*each["command"], *each["args"]])
        for _, each in containers(variant)
        if "python" in each.get("command", ())
    ]
    return [expanded(line, settings(variant)) for line in lines]


@every_variant
def test_every_command_line_is_one_that_its_job_takes(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    for python, script, *flags in job_lines(variant):
        assert python == "python"
        file = ROOT / script.removeprefix(JOBS_IN_IMAGE)
        assert script.startswith(JOBS_IN_IMAGE)
        described = importlib.util.spec_from_file_location("job", file)
        assert described
        assert described.loader
        module = importlib.util.module_from_spec(described)
        described.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [script, *flags])
        # The flags are parsed before anything else: so far, and no further.
        monkeypatch.setattr(module, "run", lambda job: None)
        try:
            module.main()
        except SystemExit:
            pytest.fail(f"refused: {script} {shlex.join(flags)}")


@every_variant
def test_jobs_write_to_where_all_pods_look(variant: str) -> None:
    mounted = [{mount["mountPath"] for mount in each.get("volumeMounts", ())} for _, each in containers(variant)]
    for line in job_lines(variant):
        for flag in {"--catalog", "--output", "--storage"} & set(line):
            place = line[line.index(flag) + 1]
            assert place.startswith("s3://") or (
                place.startswith("/data/") and any("/data" in each for each in mounted)
            )
    if variant == "laptop":
        for kind in ("RayCronJob", "RayJob"):
            cluster = clusters(variant)[kind]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                spec = group["template"]["spec"]
                assert {"name": "data", "mountPath": "/data"} in spec["containers"][0]["volumeMounts"]
                assert {"name": "data", "persistentVolumeClaim": {"claimName": "cataloger-data"}} in spec["volumes"]


@every_variant
def test_live_answers_are_built_by_the_library(variant: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    (live,) = of_kind(variant, "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(live["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert set(application.args) <= {each.name for each in fields(ServeConfig)} - {"host", "port"}
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    (workers,) = clusters(variant)["RayService"]["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    assert int(application.args["replicas"]) <= workers["replicas"]
    assert {"name": "serve", "containerPort": 8000} in worker["ports"]
    # KubeRay's own probe of such a worker calls wget, which a slim image does not have.
    assert worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    (token,) = (each for each in worker["volumeMounts"] if each["name"] == "token")
    assert Path(application.args["token_file"]).parent == Path(token["mountPath"])


# --- what names what ---


@every_variant
def test_what_is_named_is_there(variant: str) -> None:
    names = {
        kind: {each["metadata"]["name"] for each in of_kind(variant, kind)} for kind in ("ConfigMap", "ServiceAccount")
    }
    claims = {each["metadata"]["name"] for each in of_kind(variant, "PersistentVolumeClaim")}
    for pod in pods(variant):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in names["ServiceAccount"]
        for volume in spec["volumes"]:
            assert volume.get("persistentVolumeClaim", {"claimName": None})["claimName"] in {*claims, None}
            assert volume.get("secret", {"secretName": None})["secretName"] in {*SECRETS, None}
    for pod, container in containers(variant):
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for source in container.get("envFrom", ()):
            assert source.get("configMapRef", {"name": "cataloger-settings"})["name"] in names["ConfigMap"]
            secret = source.get("secretRef")
            assert secret is None or (secret["name"] in SECRETS and secret["optional"])
        ports = {port["name"] for port in container.get("ports", ())}
        probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in container]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
        assert {"configMapRef": {"name": "cataloger-settings"}} in container["envFrom"]


@every_variant
def test_everything_of_ours_says_so(variant: str) -> None:
    for each in of_kind(
        variant, "RayCronJob", "RayJob", "RayService", "Deployment", "Job", "Service", "PersistentVolumeClaim"
    ):
        assert each["metadata"]["labels"][PART] == "cataloger"
        assert each["metadata"]["labels"][COMPONENT]
    for pod in pods(variant):
        assert pod["metadata"]["labels"][PART] == "cataloger"


@every_variant
def test_services_and_deployments_find_their_pods(variant: str) -> None:
    for service in of_kind(variant, "Service"):
        chosen = [
            pod for pod in pods(variant) if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1
        ports = {port["name"] for each in chosen[0]["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for deployment in of_kind(variant, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


# --- MLflow ---


def mlflow_arguments(variant: str) -> list[str]:
    (server,) = the(variant, "Deployment", "cataloger-mlflow")["spec"]["template"]["spec"]["containers"]
    assert server["command"] == ["mlflow", "server"]
    return [expanded(shlex.quote(argument), settings(variant))[0] for argument in server["args"]]


@every_variant
def test_mlflow_is_where_jobs_look_for_it_and_answers_by_that_name(variant: str) -> None:
    name, _, port = settings(variant)["MLFLOW_TRACKING_URI"].removeprefix("http://").partition(":")
    service = the(variant, "Service", name)
    assert [each["port"] for each in service["spec"]["ports"]] == [int(port)]
    with mlflow.cli.server.make_context("server", mlflow_arguments(variant)) as context:
        flags = context.params
    assert (flags["host"], flags["port"]) == ("0.0.0.0", int(port))
    for host in (f"{name}:{port}", f"{name}.cataloger.svc.cluster.local:{port}", "localhost:5000", "127.0.0.1:35000"):
        assert is_allowed_host_header(flags["allowed_hosts"].split(","), host)
    assert not is_allowed_host_header(flags["allowed_hosts"].split(","), "elsewhere.example")


@every_variant
def test_mlflow_keeps_what_it_has_and_there_is_one_of_it(variant: str) -> None:
    deployment = the(variant, "Deployment", "cataloger-mlflow")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    spec = deployment["template"]["spec"]
    (server,) = spec["containers"]
    assert all(
        server[probe]["httpGet"]["path"] == "/health" for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )
    assert {"name": "mlflow", "mountPath": "/mlflow"} in server["volumeMounts"]
    assert {"name": "mlflow", "persistentVolumeClaim": {"claimName": "cataloger-mlflow"}} in spec["volumes"]
    assert "--backend-store-uri=sqlite:////mlflow/mlflow.db" in mlflow_arguments(variant)
    assert settings(variant)["MLFLOW_ARTIFACTS"].startswith(("/mlflow/", "s3://"))


@pytest.mark.slow
def test_the_mlflow_of_the_manifest_starts_and_answers_by_its_name(working_folder: Path) -> None:
    port = free_port()
    changed = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    arguments = [
        f"{flag}={changed.get(flag, value)}"
        for flag, _, value in (each.partition("=") for each in mlflow_arguments("base"))
    ]
    arguments = [each.replace("/mlflow/", f"{working_folder}/") for each in arguments]
    (server,) = the("base", "Deployment", "cataloger-mlflow")["spec"]["template"]["spec"]["containers"]
    environment = {**os.environ, **{each["name"]: each["value"] for each in server["env"]}}
    with open("log", "wb") as log:
        process = subprocess.Popen([BIN / "mlflow", "server", *arguments], env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, 120)
        search = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search"
        asked = {
            host: requests.post(search, json={"max_results": 1}, headers={"Host": host}, timeout=30).status_code
            for host in ("cataloger-mlflow:5000", "elsewhere.example:5000")
        }
        # A probe names the address of the pod.
        health = requests.get(f"http://127.0.0.1:{port}/health", headers={"Host": "10.1.2.3:5000"}, timeout=30)
    finally:
        kill_with_descendants(process)
    assert asked == {"cataloger-mlflow:5000": 200, "elsewhere.example:5000": 403}
    assert health.status_code == 200
    assert (working_folder / "mlflow.db").exists()


# --- safety ---


@every_variant
def test_no_pod_is_root_or_writes_where_it_need_not(variant: str) -> None:
    for pod in pods(variant):
        inside = pod["spec"]["securityContext"]
        assert inside["runAsNonRoot"]
        assert inside["runAsUser"] == inside["runAsGroup"] == inside["fsGroup"] == 10001
        assert inside["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
    for _, container in containers(variant):
        own = container["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/home/cataloger"} <= places, "what Ray, MLflow and libraries write to"


@every_variant
def test_the_user_is_that_of_the_image(variant: str) -> None:
    user = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    inside = [pod["spec"]["securityContext"] for pod in pods(variant)]
    assert {f"{each['runAsUser']}:{each['runAsGroup']}" for each in inside} == {user}


@every_variant
def test_all_pods_run_one_image_and_say_what_they_need(variant: str) -> None:
    images = {container["image"] for _, container in containers(variant)}
    assert len(images) == 1
    if variant != "base":
        assert re.fullmatch(r"\S+(:(?!latest)[\w.-]+|@sha256:[0-9a-f]{64})", *images)
    for _, container in containers(variant):
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]


@every_variant
def test_the_object_store_is_memory_and_the_head_does_no_work(variant: str) -> None:
    for cluster in clusters(variant).values():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        # A job sees no node that its autoscaler may yet start: it has all of them from the start.
        assert cluster["enableInTreeAutoscaling"] is False
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            assert {"name": "shm", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]
            (shm,) = (volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm")
            assert shm["medium"] == "Memory"
    assert settings(variant)["RAY_idle_worker_killing_time_threshold_ms"] == "300000"


@every_variant
def test_pods_end_gracefully(variant: str) -> None:
    for kind, cluster in clusters(variant).items():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= (120 if kind == "RayService" else 60)
    (workers,) = clusters(variant)["RayService"]["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    assert worker["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert int(settings(variant)["RAY_JOB_STOP_WAIT_TIME_S"]) <= 60


@every_variant
def test_nights_do_not_meet(variant: str) -> None:
    (night,) = of_kind(variant, "RayCronJob")
    assert re.fullmatch(r"\d+ \d+ \* \* \*", night["spec"]["schedule"]), "once a day"
    job = night["spec"]["jobTemplate"]
    assert (job["backoffLimit"] + 1) * job["activeDeadlineSeconds"] < 24 * 3600


@every_variant
def test_only_those_who_are_named_reach_a_port(variant: str) -> None:
    def chosen(policy: Object) -> list[Object]:
        labels = policy["spec"]["podSelector"]["matchLabels"].items()
        return [pod for pod in pods(variant) if labels <= pod["metadata"]["labels"].items()]

    policies = {each["metadata"]["name"]: each for each in of_kind(variant, "NetworkPolicy")}
    for policy in policies.values():
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert all(rule["from"] for rule in policy["spec"]["ingress"]), "a rule without `from` is for everybody"
    assert chosen(policies["cataloger-among-themselves"]) == pods(variant)
    (rule,) = policies["cataloger-among-themselves"]["spec"]["ingress"]
    assert rule == {"from": [{"podSelector": {"matchLabels": {PART: "cataloger"}}}]}
    nodes = [
        group["template"]
        for cluster in clusters(variant).values()
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    assert chosen(policies["cataloger-operator"]) == [pod for pod in pods(variant) if pod in nodes]
    assert {pod["metadata"]["labels"][COMPONENT] for pod in chosen(policies["cataloger-callers"])} == {"live"}


def test_no_key_is_in_a_file() -> None:
    for file in FOLDER.rglob("*"):
        if file.is_file():
            text = file.read_text()
            assert not re.search(r"AKIA|aws_secret|AWS_SECRET|AWS_ACCESS|kind: Secret|password", text), file


def test_the_gpu_overlay_takes_spot_nodes_with_gpus_and_keeps_heads_off_them() -> None:
    for kind, cluster in clusters("gpu").items():
        head = cluster["headGroupSpec"]["template"]["spec"]
        assert head["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
        (workers,) = cluster["workerGroupSpecs"]
        spec = workers["template"]["spec"]
        (worker,) = spec["containers"]
        assert worker["resources"]["requests"]["nvidia.com/gpu"] == worker["resources"]["limits"]["nvidia.com/gpu"] == 1
        tolerated = {each["key"] for each in spec["tolerations"]}
        spot = kind != "RayService"
        assert spec["nodeSelector"]["eks.amazonaws.com/capacityType"] == ("SPOT" if spot else "ON_DEMAND")
        assert tolerated == ({"nvidia.com/gpu", "spot"} if spot else {"nvidia.com/gpu"})
    assert all("--use-gpu" in line for line in job_lines("gpu"))
    assert "eks.amazonaws.com/role-arn" in the("gpu", "ServiceAccount", "cataloger")["metadata"]["annotations"]
    edits = {
        found for file in (FOLDER / "overlays" / "gpu").iterdir() for found in re.findall(r"EDIT \d", file.read_text())
    }
    assert edits == {"EDIT 1", "EDIT 2", "EDIT 3", "EDIT 4"}


# --- docs/cluster.md ---


def typed() -> list[str]:
    """The commands that the page has for Kubernetes, each on one line."""
    page = (ROOT / "docs" / "cluster.md").read_text().split("## On Kubernetes")[1]
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [
        re.sub(r"\s*\\?\n\s+", " ", command).strip()
        for block in blocks
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    ]


def test_there_are_ten_commands_from_nothing_to_a_night() -> None:
    assert [line.split()[0] for line in typed()][:10] == ["kind", "helm", "docker", "kind", *["kubectl"] * 6]
    assert "cataloger-tonight" in typed()[9]


def test_what_the_commands_name_is_rendered() -> None:
    objects = rendered("laptop")
    applied: list[str] = []
    for words in map(shlex.split, typed()):
        if "apply" in words:
            assert (ROOT / words[words.index("-k") + 1] / "kustomization.yaml").exists()
            chosen = selected(words[words.index("--selector") + 1], objects)
            assert chosen
            applied += [f"{each['kind'].lower()}/{each['metadata']['name']}" for each in chosen]
        for word in words:
            if re.match(r"(deployment|job|rayjob|raycronjob)/", word):
                assert word in applied, "named before it is there"
    everything = [f"{each['kind'].lower()}/{each['metadata']['name']}" for each in objects]
    assert sorted(applied) == sorted(everything), "each part is applied by one of the commands"
    assert f"docker build --tag {next(each['image'] for _, each in containers('laptop'))} ." in typed()


def selected(selector: str, objects: list[Object]) -> list[Object]:
    if found := re.fullmatch(r"(\S+) notin \((.+)\)", selector):
        key, values = found[1], found[2].split(", ")
        return [each for each in objects if each["metadata"].get("labels", {}).get(key) not in values]
    key, _, value = selector.partition("=")
    return [each for each in objects if each["metadata"].get("labels", {}).get(key) == value]


def test_the_command_for_a_night_now_makes_a_job_that_kuberay_takes() -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not on this machine")
    (night,) = of_kind("laptop", "RayCronJob")
    _, program, _ = typed()[9].split("'")
    done = subprocess.run(["jq", program], input=json.dumps(night), capture_output=True, text=True, check=True)
    made = json.loads(done.stdout)
    assert made["metadata"] == {"name": "cataloger-tonight", "namespace": "cataloger"}
    check("RayJob", made)


def test_the_operator_is_the_one_whose_schemas_these_are() -> None:
    helm = typed()[1]
    gates = json.loads(re.findall(r"featureGates=(\[.*?\])", helm)[0])
    assert {"name": "RayCronJob", "enabled": True} in gates
    namespace = shlex.split(helm)[shlex.split(helm).index("--namespace") + 1]
    (rule,) = the("base", "NetworkPolicy", "cataloger-operator")["spec"]["ingress"]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": namespace}


# --- live answers, as KubeRay starts them ---


@pytest.mark.slow
def test_the_serve_config_answers_when_a_head_is_handed_it(working_folder: Path, bundle: Path, labelled: Path) -> None:
    """KubeRay puts it to the dashboard of a cluster that runs already. Here a bundle's folder stands for the champion."""
    (live,) = of_kind("base", "RayService")
    config = yaml.safe_load(live["spec"]["serveConfigV2"])
    port, agent, dashboard, own = (free_port() for _ in range(4))
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (working_folder / "token").write_text("a-token\n")
    config["applications"][0]["args"] |= {
        "model": str(bundle),
        "token_file": str(working_folder / "token"),
        "replicas": "1",
    }
    ray_token = "0123456789abcdef0123456789abcdef"
    environment = {
        **free_of_ray(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=ray_token, RAY_USAGE_STATS_ENABLED="0"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    # Ray's socket paths have little room: pytest's own folder names are too long.
    folder = Path(f"/tmp/rk{os.getpid()}")
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={own}", f"--temp-dir={folder}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    with open("log", "wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        address, headers = f"http://127.0.0.1:{dashboard}", {"Authorization": f"Bearer {ray_token}"}
        wait_for(f"{address}/api/gcs_healthz", head, 120)
        # What KubeRay's probes of a pod ask, without a token.
        wait_for(f"http://127.0.0.1:{agent}/api/healthz", head, 120)
        put = requests.put(f"{address}/api/serve/applications/", json=config, headers=headers, timeout=60)
        assert put.status_code == 200, put.text
        deadline, status = time.monotonic() + 240, ""
        while status != "RUNNING":
            told = requests.get(f"{address}/api/serve/applications/", headers=headers, timeout=60).json()
            found = told["applications"].get("cataloger", {"status": ""})
            status = found["status"]
            assert status not in ("DEPLOY_FAILED", "UNHEALTHY"), found
            assert time.monotonic() < deadline, found
            time.sleep(1)
        where, body = f"http://127.0.0.1:{port}", {"id": "a", "title": "red shoes"}
        wait_for(f"{where}/-/healthz", head)
        known = requests.post(f"{where}/categorize", json=body, headers={"Authorization": "Bearer a-token"}, timeout=60)
        unknown = requests.post(f"{where}/categorize", json=body, timeout=60)
    finally:
        kill_with_descendants(head)
        shutil.rmtree(folder, ignore_errors=True)
    assert known.json()["category"]
    assert unknown.status_code == 401
