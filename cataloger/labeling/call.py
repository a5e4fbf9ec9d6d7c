"""One call of the labelling job: what is to be done, where, and what stood there when it began."""

from dataclasses import dataclass
from typing import Any

from cataloger.config import LabelConfig
from cataloger.curation.decisions import Given
from cataloger.infra import deciding
from cataloger.infra.storage import Location
from cataloger.labeling.reuse import Published
from cataloger.publishing import pointer, snapshot
from cataloger.spec import Spec


@dataclass(frozen=True)
class Call:
    config: LabelConfig
    output: Location
    run: str
    inputs: str
    """The run's id, but where these rows are labelled anew or such a run was pruned."""
    seen: pointer.Seen
    published: dict[str, Any] | None
    """The manifest of the published run."""
    catalog_fingerprint: str
    model: str
    model_digest: str
    started: float
    spec: Spec
    given: Given
    """What people have decided."""

    @property
    def folder(self) -> Location:
        return snapshot.run_folder(self.output, self.run)

    @property
    def decided_by(self) -> dict[str, str]:
        return {
            "inputs": self.inputs,
            "catalog_fingerprint": self.catalog_fingerprint,
            "model_digest": self.model_digest,
            "code_digest": deciding.digest(self.config.explain > 0),
        }

    def to_carry_over(self) -> Published | None:
        """The published run, where the same code and model made it with the same settings: equal texts have equal labels."""
        before, config = self.published, self.config
        if before is None or config.anew:
            return None
        alike = all(
            before["config"].get(name) == getattr(config, name) for name in ("alternatives", "precision", "tiers")
        )
        alike &= before["config"].get("explain", 0) == config.explain
        alike &= all(before.get(name) == self.decided_by[name] for name in ("model_digest", "code_digest"))
        if self.spec.tags:  # which say the names of the columns that they are in
            alike &= tuple(before["config"].get("text_columns") or ()) == tuple(config.text_columns or ())
        if not alike or not before["labelled"]:
            return None
        folder = snapshot.run_folder(self.output, before["run"])
        return Published(
            before["run"],
            folder,
            before["units"],
            before["labelled"],
            config.alternatives,
            config.explain,
            decided=bool(before.get("decisions")),
        )
