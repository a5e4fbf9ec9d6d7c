"""A published run with the catalog that it was made from, and the model that made it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cataloger.bundle import read_spec
from cataloger.curation.candidates import labelled_rows
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.errors import ConfigError, StorageError
from cataloger.infra import tracking
from cataloger.infra.storage import Location, check_reachable, locate
from cataloger.model.ensemble import SEVERAL, fetch_models
from cataloger.publishing import pointer, snapshot
from cataloger.spec import TAGS, Spec


@dataclass(frozen=True)
class Run:
    manifest: dict[str, Any]
    folder: Location
    catalog: Catalog
    spec: Spec
    models: tuple[str, ...]

    def rows(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(labels, the rows of the catalog that they are of), part by part. Raises CatalogError for a catalog of other rows."""
        return labelled_rows(self.manifest, self.folder, self.catalog)


def open_run(
    labels: str,
    catalog: str | None = None,
    models: Sequence[str] = (),
    text_columns: tuple[str, ...] | None = None,
    image_column: str | None = None,
    others: Mapping[str, str] | None = None,
) -> Run:
    """The run that is published in a folder, by default with the catalog and the model that it names. Raises CatalogerError."""
    place = locate(labels)
    check_reachable(place)
    manifest = pointer.published(place, pointer.look(place))
    if manifest is None:
        raise StorageError(f"--labels {labels}: nothing is published there; name the --output of jobs/label.py")
    # As it was then: an alias may name another one by now.
    made_by = tuple(models) or tuple(manifest["model"].split(SEVERAL))
    if any(uri.startswith(("models:/", "runs:/")) for uri in made_by):
        tracking.connect()
    spec = read_spec(fetch_models(made_by).folder)
    spec = spec.reading(text_columns, image_column if spec.picture else None)
    if spec.head == TAGS:
        raise ConfigError(f"model {' '.join(made_by)} gives tags; this is about categories")
    opened = open_catalog(
        catalog or manifest["catalog"],
        manifest["config"]["id_column"],
        spec.text_columns,
        others={**(others or {}), **({image_column: "--image-column"} if image_column and not spec.picture else {})},
        picture=spec.picture,
    )
    return Run(manifest, snapshot.run_folder(place, manifest["run"]), opened, spec, made_by)
