"""The service on Ray Serve: replicas of a model behind one address, as many as the load wants."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import requests

from cataloger.bundle import digest, read_spec
from cataloger.config import ServeConfig
from cataloger.curation import decisions
from cataloger.curation.decisions import Decisions
from cataloger.errors import ConfigError, ModelError, ResourceError, TrackingError
from cataloger.infra import runtime, tracking
from cataloger.labeling.packed import Model
from cataloger.live.proxy import in_front
from cataloger.model import registry
from cataloger.model.registry import ModelSource

log = logging.getLogger(__name__)
NAME = "cataloger"
QUIET = {"log_level": "ERROR", "enable_access_log": False}
# Requests that a replica takes at the same time; which of them wait, and which are refused, is for `Batches` to say.
AT_ONCE = 1_000
# What may wait for a replica, as a multiple of what it answers at the same time.
BATCHES_WAITING = 8
# Products that may wait for an explanation: each takes as long as up to 130 answers.
EXPLANATIONS_WAITING = 100
# What the proxy may take to find replicas that are ready.
START_SECONDS = 60.0
# What nodes may take to start, and how often they are looked for.
NODES_SECONDS, SECONDS_BETWEEN_LOOKS = 900.0, 5.0
# A replica is added where so many requests are with each of them.
BUSY = 32


@contextlib.contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """The address of a service that answers for as long as the block runs. Raises CatalogerError before anything is started."""
    least, most = _replicas(config)
    token = _token(config.token_file)
    if not 1 <= config.port < 1 << 16:
        raise ConfigError(f"--port {config.port}: must be from 1 to 65535")
    _check(config)
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("ray serve is not installed; pip install 'cataloger[serve]'")
    tracking_uri = tracking.connect()
    source = registry.fetch_model(config.model)
    spec = read_spec(source.folder)
    given = decisions.read(config.pins, config.rules, spec, config.alternatives)
    _check_free(config.host, config.port)
    with in_front(), runtime.session():
        _check_followed(config.model, tracking_uri)
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        with contextlib.suppress(ValueError):
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
            raise ResourceError(
                "Ray Serve runs on this cluster already, and what it serves would be replaced; stop it with `serve shutdown`, "
                "or take another cluster"
            )
        shape = runtime.serving_shape(config.use_gpu, least, most)
        shared = Model(spec, digest(source.folder), [runtime.share_folder(source.folder)])
        people = given.share()
        build = _builder(
            config,
            lambda: ModelSource(shared.folder(), source.uri, source.version),
            lambda: people,
            shape,
            token,
            tracking_uri,
        )
        serve.start(http_options={"host": config.host, "port": config.port}, logging_config=QUIET)
        try:
            try:
                serve.run(_deployed(build, least, most, shape), name=NAME, route_prefix="/")
            except RuntimeError as error:
                why = (str(error).strip().splitlines() or [""])[-1]
                raise ModelError(f"model {config.model}: no replica of it starts: {why}") from error
            address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"
            _wait_for(address)
            yield address
        finally:
            serve.shutdown()


def service(args: Mapping[str, Any]) -> Any:
    """What a Serve config builds: `import_path: cataloger.live.job:service`, its `args` the fields of ServeConfig.

    Serve builds it in a task that ends then, and takes with it what it has put into the object store: each replica fetches the
    model, pins and rules by itself. Where to listen is for the config to say. Raises CatalogerError.
    """
    known = {each.name for each in fields(ServeConfig)} - {"host", "port"}
    if unknown := sorted(set(args) - known):
        raise ConfigError(f"args {', '.join(unknown)}: not known here; there are {', '.join(sorted(known))}")
    given: dict[str, Any] = dict(args)
    if "replicas" in given:  # a number in YAML
        given["replicas"] = str(given["replicas"])
    if "image_sources" in given:
        places = given["image_sources"]
        given["image_sources"] = (places,) if isinstance(places, str) else tuple(places)
    config = ServeConfig(**given)
    least, most = _replicas(config)
    token = _token(config.token_file)
    _check(config)
    tracking_uri = tracking.connect()
    source = registry.fetch_model(config.model)
    spec = read_spec(source.folder)
    decisions.read(config.pins, config.rules, spec, config.alternatives)
    shape = _shape_in_time(config.use_gpu, least, most)
    _check_followed(config.model, tracking_uri)
    build = _builder(
        config,
        lambda: registry.fetch_model(source.uri),
        lambda: decisions.read(config.pins, config.rules, spec, config.alternatives).share(),
        shape,
        token,
        tracking_uri,
    )
    return _deployed(build, least, most, shape)


def _check(config: ServeConfig) -> None:
    """What no replica could start with. Raises ConfigError."""
    for name, least, most in (("alternatives", 0, 100), ("max_wait_ms", 0, 60_000)):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be a number from {least} to {most:,}")
    _check_image_sources(config.image_sources)


def _check_followed(model: str, tracking_uri: str) -> None:
    """Whether every replica can ask MLflow which version an alias names. Raises TrackingError."""
    tracking.check_nodes(tracking_uri)
    here = urlsplit(tracking_uri).hostname in ("127.0.0.1", "localhost", "::1")
    if here and registry.is_alias(model) and runtime.has_other_nodes():
        raise TrackingError(
            f"--model {model}: replicas on other nodes ask MLflow which version it is, and do not reach "
            f"{tracking.shown(tracking_uri)}; start the server "
            "where all nodes reach it, or name a version, such as models:/NAME/3"
        )


def _shape_in_time(use_gpu: bool, least: int, most: int) -> runtime.ActorShape:
    """`serving_shape`, when the nodes are there: Kubernetes has a service built as soon as the head is ready. Raises ResourceError."""
    deadline = time.monotonic() + NODES_SECONDS
    while True:
        try:
            return runtime.serving_shape(use_gpu, least, most)
        except ResourceError as problem:
            if time.monotonic() > deadline:
                raise
            log.info("waiting for nodes: %s", problem)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _deployed(build: Callable[[], Any], least: int, most: int, shape: runtime.ActorShape) -> Any:
    """The service as an application of Ray Serve."""
    from ray import serve

    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        max_ongoing_requests=AT_ONCE,
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": BUSY},
        ray_actor_options={"num_cpus": shape.cpus, "num_gpus": shape.gpus},
        health_check_period_s=5,
        logging_config=QUIET,
    )
    return deployment.bind()


def _wait_for(address: str) -> None:
    """Raises ResourceError where nothing answers there, though replicas are ready."""
    deadline, session = time.monotonic() + START_SECONDS, requests.Session()
    session.trust_env = False  # it is here
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if session.get(f"{address}/health", timeout=5).ok:
                return
        time.sleep(0.2)
    raise ResourceError(f"{address}: the service does not answer there; the log of its proxy is in Ray's log folder")


def serve_until_stopped(config: ServeConfig) -> None:
    """Serve until this process is told to end."""
    with serving(config) as address:
        log.info("serving %s at %s; what it takes is at %s/docs", config.model, address, address)
        while True:
            time.sleep(3600)


def _builder(
    config: ServeConfig,
    first: Callable[[], ModelSource],
    people: Callable[[], Decisions | None],
    shape: runtime.ActorShape,
    token: str | None,
    tracking_uri: str,
) -> Callable[[], Any]:
    """Makes the service of a replica, in its process."""

    def build() -> Any:
        import mlflow

        from cataloger.data import fetching
        from cataloger.live.app import application
        from cataloger.live.batches import Batches
        from cataloger.live.following import Answering, Followed
        from cataloger.live.measures import Measures

        logging.getLogger("cataloger").setLevel(logging.INFO)
        logging.getLogger("cataloger").addHandler(logging.StreamHandler())
        # As `tracking.connect` sets them: an MLflow that is away keeps no replica from starting.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow.set_tracking_uri(tracking_uri)
        if config.image_sources:
            fetching.hurry()
        answering = Answering(
            config.id_column,
            config.alternatives,
            config.precision,
            shape.device,
            config.image_sources,
            people(),
            shape.threads,
        )
        model = Followed(config.model, first(), answering)
        model.follow()
        measures = Measures()
        network: Any = model.now.tiers.network
        turns, most = (network.engine.streams, network.engine.token_budget) if network else (shape.threads, 4_096)

        def answer(asked: Sequence[Any]) -> list[dict[str, Any]]:
            now = model.now
            measures.model(now.source.version)
            measures.batch(len(asked))
            return now.answer(asked)

        # One more than the engine has streams: what is asked is read and what is answered is written meanwhile.
        batches = Batches(answer, turns + 1, most, config.max_wait_ms / 1000, BATCHES_WAITING * most)
        # Counted in products, request by request: of what is explained, each product takes a while by itself.
        explaining = Batches(lambda asked: model.now.explain(asked), 1, 1, 0.0, EXPLANATIONS_WAITING)
        return application(model, batches, explaining, measures, token)

    return build


def _replicas(config: ServeConfig) -> tuple[int, int]:
    """(least, most). Raises ConfigError."""
    least, most = runtime.span(config.replicas, "--replicas")
    if not least:
        raise ConfigError(f"--replicas {config.replicas}: at least one must answer")
    return least, most


def _check_image_sources(places: Sequence[str]) -> None:
    """Raises ConfigError."""
    for place in places:
        if not re.match(r"(s3|az|gs|https?)://[^/]+/(.*/)?$", place):
            raise ConfigError(
                f"--image-sources {place}: must be s3://, az://, gs://, https:// or http://, a host or a bucket, and end with a slash"
            )


def _token(file: str | None) -> str | None:
    """The digest of the token in a file; the token itself goes nowhere. Raises ConfigError."""
    if file is None:
        return None
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file}: cannot be read: {error}") from error
    if not token or not token.isascii() or len(token.split()) > 1:
        raise ConfigError(f"--token-file {file}: must hold one word of ASCII characters, the token")
    return hashlib.sha256(token.encode()).hexdigest()


def _check_free(host: str, port: int) -> None:
    """Raises ResourceError where the port is taken here; Serve would wait for it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"--port {port}: cannot listen on {host}:{port}: {error.strerror}; choose another one"
            ) from error
