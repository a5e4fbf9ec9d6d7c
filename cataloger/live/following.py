"""The model that answers now. Where an alias such as @champion names it, the one that the alias names now."""

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cataloger.bundle import digest
from cataloger.config import Precision
from cataloger.curation.decisions import Decisions, check
from cataloger.errors import ModelError
from cataloger.explaining.occlusion import Explainer
from cataloger.live import products
from cataloger.live.products import Product
from cataloger.model import pyfunc, registry
from cataloger.model.registry import ModelSource
from cataloger.model.tiers import Labelled, Tiers
from cataloger.spec import Spec

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 15.0


@dataclass(frozen=True)
class Answering:
    """How a service answers, whatever the model."""

    id_column: str
    alternatives: int
    precision: Precision
    device: str
    image_sources: tuple[str, ...] = ()
    decisions: Decisions | None = None
    """What people have decided, whatever the model says."""
    threads: int = 1
    """Of a forward pass."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready."""

    source: ModelSource
    tiers: Tiers
    answering: Answering
    digest: str
    example: tuple[dict[str, Any], dict[str, Any]] = field(init=False)
    """A product, and its answer: that it has one shows that the model works."""
    explained: dict[str, Any] = field(init=False)
    """Why it has that answer; nothing where the model's answers cannot be explained."""

    def __post_init__(self) -> None:
        given = {name: values[0] for name, values in pyfunc.example(self.source.folder).items()}
        product = {self.answering.id_column: "sku-1", **given}
        object.__setattr__(self, "example", (product, self.answer([product])[0]))
        object.__setattr__(self, "explained", {} if self.spec.tags else self.explain([product])[0])

    @property
    def spec(self) -> Spec:
        return self.tiers.spec

    def answer(self, asked: Sequence[Product]) -> list[dict[str, Any]]:
        """As `label.py` publishes them."""
        labelled = self.tiers.published(
            products.table(asked, self.spec, self.answering.image_sources), self.answering.alternatives
        )
        if people := self.answering.decisions:
            asked_by = products.fields(asked, people.columns)
            ids = products.fields(asked, [self.answering.id_column]).column(0)
            found = people.apply(asked_by, ids, labelled.labels, labelled.reasons, self.tiers.columns)
            labelled = Labelled(*found)
        return products.answers(asked, labelled, self.answering.id_column)

    def explain(self, asked: Sequence[Product]) -> list[dict[str, Any]]:
        """Why each has its category. Raises ConfigError for a model whose answers cannot be explained."""
        table = products.table(asked, self.spec, self.answering.image_sources)
        labelled = self.tiers.published(table, 1)
        found = Explainer.of(self.tiers).explain(table, labelled.labels)
        return products.explanations(asked, labelled, found, self.answering.id_column)


def load(source: ModelSource, answering: Answering) -> Loaded:
    """Raises ModelError, ConfigError where people have decided what this model cannot give, and what a model raises that cannot answer."""
    # Each time: PyTorch keeps this number thread by thread, and another version is loaded in another thread than the first one.
    torch.set_num_threads(answering.threads)
    tiers = Tiers(source.folder, answering.device, answering.precision, live=True)
    if tiers.network and tiers.network.engine.owns_threads:
        torch.set_num_threads(1)
    if answering.decisions:
        check(answering.decisions.pins, answering.decisions.rules, tiers.spec)
    return Loaded(source, tiers, answering, digest(source.folder))


class Followed:
    """Looks for another version every quarter of a minute, loads it beside the one that answers, and puts it in its place.

    A version that is no model, or cannot be loaded, is tried once, and leaves the one that answers.
    """

    def __init__(self, uri: str, first: ModelSource, answering: Answering) -> None:
        self.uri, self.answering = uri, answering
        self.now = load(first, answering)
        self.refused: str | None = None

    def follow(self) -> None:
        """From now on, in a thread of its own, where an alias names the model: it may be another version already."""
        if registry.is_alias(self.uri):
            self._look_or_say()
            threading.Thread(target=self._keep_looking, daemon=True).start()

    def look(self) -> None:
        """Once."""
        version = registry.version_of(self.uri)
        if version == self.now.source.version:
            self.refused = None  # nobody asks for it any more; if somebody does again, it is tried again
        if version in (self.now.source.version, self.refused):
            return
        try:
            source = registry.fetch_model(f"models:/{version}")
        except ModelError as error:
            # What cannot be had may be there in a while; what is no model never will be.
            self.refused = self.refused if error.__cause__ else version
            log.warning("model %s: %s cannot be had, %s goes on: %s", self.uri, version, self.now.source.version, error)
            return
        try:
            found = load(source, self.answering)
        except Exception as error:  # whatever is wrong with it
            self.refused = version
            log.warning("model %s: %s does not load, %s goes on: %s", self.uri, version, self.now.source.version, error)
            return
        finally:
            # All that answers is in memory now; a service lives for many promotions.
            shutil.rmtree(source.folder, ignore_errors=True)
        log.info("model %s: %s answers from now on, in place of %s", self.uri, version, self.now.source.version)
        self.now, self.refused = found, None

    def _keep_looking(self) -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self._look_or_say()

    def _look_or_say(self) -> None:
        try:
            self.look()
        except Exception as error:  # MLflow may be away for a while
            log.warning("model %s: cannot be asked for its version: %s", self.uri, error)
