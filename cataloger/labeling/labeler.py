"""The actors at the end of the stream: each holds the network, and answers what the reading tasks leave to it."""

import functools
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cataloger.config import Precision
from cataloger.data.batching import slots
from cataloger.data.inputs import Encoded
from cataloger.errors import ResourceError
from cataloger.heads.columns import explained
from cataloger.heads.ranked import WithRanked
from cataloger.infra import runtime
from cataloger.infra.node_cache import first_time
from cataloger.infra.runtime import ActorShape
from cataloger.labeling.cost import Cost, SharedClock
from cataloger.labeling.packed import Model, pack, unpack
from cataloger.model.tiers import first_tier

# A few odd rows are isolated and rejected; when more of a unit fail, the fault is not theirs and the error propagates.
BAD_ROWS_PER_UNIT = 100


class Labeler:
    """The actor that holds the model. It sees distinct texts only: its time is the forward pass."""

    def __init__(
        self, model: Model, shape: ActorShape, precision: Precision, alternatives: int, explain: int = 0
    ) -> None:
        self.alternatives, self.explain = alternatives, explain
        self.clock = SharedClock()
        self.has_answered = False
        try:
            self._load(model, shape, precision)
        except Exception:
            runtime.prepare_to_abort()
            raise

    def _load(self, model: Model, shape: ActorShape, precision: Precision) -> None:
        # Imported here: the driver and the reading tasks need no torch.
        import torch

        from cataloger.model.predictor import Predictor

        torch.set_num_threads(shape.threads)
        self.out_of_memory = torch.OutOfMemoryError
        self.predictor = Predictor(model.folder(), shape.device, precision, model.spec)
        if self.predictor.engine.owns_threads:
            # What is left to PyTorch is little, and its threads, while they wait, take the cores from the engine's.
            torch.set_num_threads(1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit: its distinct texts become one answer each, after those that are known already."""
        cost = Cost(**json.loads(batch.column("cost")[0].as_py()))
        kind: Any = (
            functools.partial(WithRanked.from_arrow, given=self.predictor.input)
            if self.predictor.spec.words
            else self.predictor.input.from_arrow
        )
        encoded = kind(unpack(batch.column("encoded")[0]))
        known, asked_again = (unpack(batch.column(name)[0]) for name in ("known", "asked_again"))
        with cost.timed("forward", self.clock):
            found = self._answer(encoded)
        cost.forwarded, cost.tokens = len(encoded), int(encoded.costs.sum())
        cost.slots = slots(encoded.costs, self.predictor.token_budget, self.predictor.row_budget)
        cost.halvings = self.predictor.halvings
        if self.explain:
            with cost.timed("explaining", self.clock):
                found = self._explained(
                    found, encoded, unpack(batch.column("texts")[0]).column("text").combine_chunks()
                )
        if len(asked_again):
            found, others = found.slice(0, len(found) - len(asked_again)), found.slice(len(found) - len(asked_again))
            cost.agreed = pc.sum(pc.equal(others.column("label"), asked_again.column("label"))).as_py() or 0
        if len(known):
            found = pa.concat_tables([known.select(found.schema.names).cast(found.schema), found])
        columns = {"unit": batch.column("unit"), "rows": batch.column("rows")}
        columns |= {"answers": pa.array([pack(found)], pa.large_binary())}
        self.has_answered |= len(encoded) > 0
        return pa.table({**columns, "cost": [json.dumps(asdict(cost))]})

    def _answer(self, encoded: Encoded) -> pa.Table:
        """One row per text: the prediction, or the error that its prediction raised."""
        errors: dict[int, str] = {}
        found = pa.concat_tables(self._isolate(encoded, 0, len(encoded), errors)).combine_chunks()
        if errors:
            failed = np.isin(np.arange(len(encoded)), list(errors))
            place = np.cumsum(~failed) - 1
            found = found.take(pa.array(place, mask=failed))
        return found.append_column("error", pa.array([errors.get(row) for row in range(len(encoded))], pa.string()))

    def _explained(self, answers: pa.Table, encoded: Encoded, texts: pa.Array) -> pa.Table:
        """Answers with what they rest on, where they need review. Of one that the model failed at nothing is known."""
        from cataloger.explaining.occlusion import Explainer

        spec, folder = self.predictor.spec, self.predictor.folder
        own: Any = encoded.encoded if isinstance(encoded, WithRanked) else encoded
        explainer = Explainer(
            spec, self.predictor.input, first_tier(folder, spec) if spec.words else None, self.predictor
        )
        good = answers.column("error").is_null()
        rows = np.flatnonzero(good.to_numpy(zero_copy_only=False))
        found = explainer.because(
            texts.filter(good.combine_chunks()), answers.filter(good), self.explain, own.take(rows)
        )
        place = np.full(len(answers), -1)
        place[rows] = np.arange(len(rows))
        because = found.take(pa.array(place, mask=place < 0))
        return explained(answers.drop_columns(["error"]), because).append_column("error", answers.column("error"))

    def _isolate(self, encoded: Encoded, start: int, stop: int, errors: dict[int, str]) -> Iterator[pa.Table]:
        """Answers for rows `start` to `stop`; rows that make the model raise are found by bisection and go to `errors`."""
        try:
            yield self.predictor.answer(encoded.slice(start, stop), self.alternatives)
        except (IndexError, ValueError, RuntimeError) as error:
            if isinstance(error, self.out_of_memory):
                raise
            if not self.predictor.works():
                self._end_process(error)
            if len(errors) >= BAD_ROWS_PER_UNIT:
                raise
            if stop - start == 1:
                errors[start] = f"the model raised {_said(error)}"
                yield self.predictor.answer(encoded.slice(0, 0), self.alternatives)
            else:
                middle = (start + stop) // 2
                yield from self._isolate(encoded, start, middle, errors)
                yield from self._isolate(encoded, middle, stop, errors)

    def _end_process(self, error: Exception) -> NoReturn:
        """The model cannot answer in this process any more: Ray starts another one and gives it the units of this one.

        Raises ResourceError where a process of this actor has ended so before on this node, and this one has not answered for a
        unit either: Ray would go on for ever.
        """
        if not self.has_answered and not first_time("broken", str(ray.get_runtime_context().get_actor_id())):
            raise ResourceError(
                f"node {platform.node()}: the model failed at everything twice in a row, the second time in a new process "
                f"({_said(error)}); look after the device there, then run the same command again"
            ) from error
        print(f"the model fails at everything, this process ends: {_said(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def _said(error: Exception) -> str:
    message, *_ = str(error).split("\n")
    return f"{type(error).__name__}: {message}"
