"""Ray start-up, and shapes: how many workers and actors, with which CPUs, GPUs and threads."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions
import ray.train
import ray.tune
import yaml
from ray._private.state import state as ray_state

from cataloger.errors import ConfigError, ResourceError
from cataloger.infra.node_cache import once_per_node

# Threads beyond this give one forward pass little; further cores serve further actors.
MAX_THREADS_PER_ACTOR = 8
# An actor declares this much less than the threads it uses. Not a simple fraction: no number of actors fills a node.
CPU_LEFT_BY_ACTOR = 0.45
# What a reading or writing task declares, so that at least two fit beside the actors.
TASK_CPUS = 0.2
# Where `ray up` puts the autoscaler's configuration on the head (cluster.yaml names it).
AUTOSCALING = Path("~/ray_bootstrap_config.yaml")


@dataclass(frozen=True)
class ActorShape:
    """One labelling actor: its resources, its torch threads, and how many such actors there may be."""

    device: str
    cpus: float
    gpus: float
    threads: int
    min_actors: int
    max_actors: int


@contextmanager
def session() -> Iterator[None]:
    """A Ray to work on: the cluster at `RAY_ADDRESS` (set under `ray job submit`), else one on this machine alone.

    What this call started ends with it; a session that was there before is left as it is.
    """
    if ray.is_initialized():
        # A job that failed in this process leaves its actors to the garbage collector, and they hold their CPUs.
        gc.collect()
        with _whole_nodes():
            yield
        return
    # Ray's own chatter goes to its log folder. What fails in a worker reaches the driver as an exception.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # By default an idle worker ends after a second: every unit would wait for new ones, and pay their imports.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "300000")
    # (ray.data and ray.train set up their loggers when imported: above, so that this comes last.)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = cluster_address()
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with _silent_stderr():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except ConnectionError as error:
        if isinstance(error.__cause__, ray.exceptions.AuthenticationError):
            raise ResourceError(
                f"RAY_ADDRESS={address}: the Ray cluster wants its token; set RAY_AUTH_MODE=token and put the token into "
                "~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from error
        raise ResourceError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there; unset it to run on this machine"
        ) from error
    try:
        with _whole_nodes():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _whole_nodes() -> Iterator[None]:
    """Have Ray Data ask for whole nodes, where a cluster cannot grow.

    It asks for more than there is where a cluster is busy, and takes what it is promised for all there is. By default it asks in pieces
    of tasks and actors, and what of a node is no whole CPU then is promised to nobody: on a small node too little for the last stage to
    run before all is read (Ray 2.60, _refresh_resource_reservations).
    """
    name = "RAY_DATA_CLUSTER_AUTOSCALER"
    if name in os.environ or can_grow_to():
        yield
        return
    os.environ[name] = "V2"
    try:
        yield
    finally:
        del os.environ[name]


def cluster_address() -> str:
    """Where to connect to; "local" starts a Ray of our own. Raises ResourceError for the address of a job server."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("http"):
        raise ResourceError(
            f"RAY_ADDRESS={address} is a job server: submit with `ray job submit --working-dir . -- python jobs/…`, "
            "or unset RAY_ADDRESS to run on this machine"
        )
    return address


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ side announces its log level on file descriptor 2; what goes wrong here comes as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def capacity(resource: str) -> float:
    """How much of "CPU" or "GPU" the cluster has now, or can grow to where an autoscaler says so."""
    return max(float(ray.cluster_resources().get(resource, 0.0)), can_grow_to().get(resource, 0.0))


def can_grow_to() -> dict[str, float]:
    """What the workers have of the largest cluster that the autoscaler would make; empty where there is none, or it makes none.

    The autoscaler of `ray up` tells Ray nothing of nodes that do not run yet, so its configuration is read, which lies on the head, where
    submitted jobs run.
    """
    if told := ray_state.get_max_resources_from_cluster_config():
        return {name: float(amount) for name, amount in told.items()}
    kinds, most = _kinds_of_nodes()
    if not any(nodes for nodes, _ in kinds):
        return {}
    found: dict[str, float] = {}
    for resource in sorted({name for _, has in kinds for name in has}):
        room, amount = most, 0.0
        # All of them together may not be more than so many.
        for nodes, has in sorted(kinds, key=lambda kind: -kind[1].get(resource, 0.0)):
            amount += min(nodes, room) * has.get(resource, 0.0)
            room -= min(nodes, room)
        found[resource] = amount
    return found


def _kinds_of_nodes() -> tuple[list[tuple[int, dict[str, float]]], int]:
    """((how many there may be, what each has) of the kinds of workers that `ray up` may start, how many workers in all)."""
    file = AUTOSCALING.expanduser()
    if cluster_address() == "local" or not file.is_file():
        return [], 0
    config = yaml.safe_load(file.read_text())
    most = int(config.get("max_workers", 0))
    workers = [
        kind for name, kind in config.get("available_node_types", {}).items() if name != config.get("head_node_type")
    ]
    return [(min(most, kind.get("max_workers", most)), kind.get("resources", {})) for kind in workers], most


def has_other_nodes() -> bool:
    """Whether there are other nodes than one, or may be."""
    return sum(node["Alive"] for node in ray.nodes()) > 1 or bool(_kinds_of_nodes()[0])


def wants_gpu(use_gpu: bool) -> bool:
    """Whether to run on GPUs: where there are any. Raises ResourceError when they are asked for and there are none."""
    if capacity("GPU"):
        return True
    if use_gpu:
        raise ResourceError("--use-gpu: the cluster has no GPU and cannot get one; leave the flag out to run on CPUs")
    return False


def training_workers(num_workers: str, gpu: bool) -> tuple[int, int]:
    """(least, most) of `--num-workers N` or `MIN:MAX`.

    Raises ConfigError, and ResourceError when the cluster can never hold the least (1 GPU each, or 1 CPU each).
    """
    least, most = span(num_workers, "--num-workers")
    resource = "GPU" if gpu else "CPU"
    room = int(capacity(resource))
    if not 1 <= least <= room:
        raise ResourceError(
            f"--num-workers {num_workers}: each worker needs 1 {resource} and the cluster can hold {room}; ask for 1 to {room}"
        )
    return least, most


def span(text: str, flag: str) -> tuple[int, int]:
    """(least, most) of `N` or `MIN:MAX`. Raises ConfigError."""
    least, _, most = text.partition(":")
    most = most or least
    if not (least.isdecimal() and most.isdecimal() and int(least) <= int(most)):
        raise ConfigError(f"{flag} {text}: must be a number such as 4, or a range such as 1:4")
    return int(least), int(most)


def labelling_shape(use_gpu: bool) -> ActorShape:
    """One actor per GPU, or CPU actors of up to 8 threads.

    However many actors of however many jobs are on a node, some CPU stays free for the reading and writing tasks:
    actors that hold all of it would wait for their input for ever.
    """
    if wants_gpu(use_gpu):
        return ActorShape("cuda", cpus=0.5, gpus=1, threads=1, min_actors=1, max_actors=int(capacity("GPU")))
    there, cores = _nodes_and_cores()
    threads = min(MAX_THREADS_PER_ACTOR, cores)
    cpus = threads - CPU_LEFT_BY_ACTOR
    # By node, as an actor fits on one: one that fits nowhere would wait, and Ray Data take its CPUs for spent.
    fit = sum(int(node.get("CPU", 0) / cpus) for node in there)
    grown = int(capacity("CPU") / cores) * int(cores / cpus)
    return ActorShape("cpu", cpus, gpus=0, threads=threads, min_actors=1, max_actors=max(1, fit, grown))


def _nodes_and_cores() -> tuple[list[dict[str, float]], int]:
    """(what each node that is there has, the cores of the largest one that is there or may be started)."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A head without workload counts no CPU.
    kinds = [has for nodes, has in _kinds_of_nodes()[0] if nodes]
    return there, max(1, *(int(node.get("CPU", 0)) for node in [*there, *kinds]))


def serving_shape(use_gpu: bool, least: int, most: int) -> ActorShape:
    """A replica per GPU, or on CPUs such that `most` of them share what there is. Raises ResourceError where `least` do not fit."""
    if wants_gpu(use_gpu):
        if least > capacity("GPU"):
            raise ResourceError(f"--replicas: each replica needs 1 GPU and the cluster can hold {capacity('GPU'):.0f}")
        return ActorShape("cuda", cpus=0.5, gpus=1, threads=1, min_actors=least, max_actors=most)
    if not capacity("CPU"):
        raise ResourceError("--replicas: the cluster has no node with CPUs for them yet; start its workers first")
    there, cores = _nodes_and_cores()
    threads = min(MAX_THREADS_PER_ACTOR, cores, max(1, int(capacity("CPU") / most)))
    # With more replicas than cores, each declares its share of one.
    cpus = min(threads - CPU_LEFT_BY_ACTOR, 0.99 * capacity("CPU") / most)
    fit = sum(int(node.get("CPU", 0) / cpus) for node in there)
    if least > max(fit, int(capacity("CPU") / cores) * int(cores / cpus)):
        raise ResourceError(f"--replicas: {least} replicas of {threads} threads do not fit on the nodes, {fit} do")
    return ActorShape("cpu", cpus, gpus=0, threads=threads, min_actors=least, max_actors=most)


def set_threads(processes_on_this_node: int) -> None:
    """Share this node's cores among the given number of torch processes; Ray alone would give each worker one thread."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes_on_this_node))


def prepare_to_abort() -> None:
    """For an actor whose constructor has failed, before it raises.

    Ray 2.60 then aborts a process whose actor takes several calls at once, and the handlers that are to tell of the abort may
    fail themselves, over and over: the process would stay, with a core of its own, and a log that grows for ever.
    """
    for number in (signal.SIGABRT, signal.SIGSEGV):
        signal.signal(number, signal.SIG_DFL)


def share_folder(folder: Path) -> Any:
    """Put a small folder (a model bundle) into Ray's object store, from where every node gets it once."""
    return ray.put({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()})


def local_copy(shared: Any, digest: str) -> Path:
    """The shared folder on this node's disk; the processes of a node write it once. `digest` names its content."""

    def write(folder: Path) -> None:
        for name, data in ray.get(shared).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    return once_per_node("model", digest, write)
