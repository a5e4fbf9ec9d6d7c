"""The review loop: ask people about the products that are worth it, and take their answers as corrections."""

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from cataloger.config import ExportConfig, ImportConfig
from cataloger.curation import answers as answering
from cataloger.curation import candidates, queue
from cataloger.curation.choosing import choose
from cataloger.curation.formats import FORMATS, read_answers
from cataloger.curation.queue import Queue
from cataloger.curation.run import open_run
from cataloger.curation.tables import texts_of
from cataloger.errors import ConfigError
from cataloger.infra import places
from cataloger.infra.storage import check_writable, locate
from cataloger.spec import MANY_CATEGORIES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A queue of `asked` products, chosen among `seen` labels."""

    output: str
    queue: str
    asked: int
    seen: int
    unsure: float
    """The mean confidence of the labels that are asked about."""
    alike: int
    """Products that have the text of one that is asked about, these among them."""
    categories: tuple[tuple[str, int], ...]
    """The commonest top categories of the labels."""


def export(config: ExportConfig) -> Exported:
    """Choose products of the published run, and write them for a review tool. Raises CatalogerError."""
    if config.budget < 1:
        raise ConfigError(f"--budget {config.budget}: ask about at least one product")
    output = locate(places.place(config.output, "--output"))
    others = {config.weight_column: "--weight-column"} if config.weight_column else {}
    run = open_run(config.labels, config.catalog, config.model, config.text_columns, config.image_column, others)
    spec, manifest = run.spec, run.manifest
    picture = spec.picture.column if spec.picture else config.image_column
    check_writable(output)
    if (output / queue.ABOUT).exists():
        raise ConfigError(f"--output {config.output}: has a queue already; import its answers, and name another folder")
    columns = [*spec.text_columns, *([picture] if picture and picture not in spec.text_columns else [])]
    if taken := next((name for name in columns if name in answering.NOT_OF_PRODUCTS), None):
        raise ConfigError(
            f"column {taken!r} of the catalog: corrections say something else by this name; rename it, or name --text-columns"
        )
    if "migrated" in manifest:
        raise ConfigError(
            f"--labels {config.labels}: were moved to another tree, and their model knows the old one; label the catalog with a model that has "
            "learnt the new tree (train.py --tree-map), and review these labels"
        )
    found = candidates.find(run.rows(), columns, config.weight_column, config.budget)
    if not len(found.rows):
        raise ConfigError(
            f"--labels {config.labels}: no label there is unsure, or none of a product with weight; there is nothing to ask"
        )
    texts = texts_of(found.rows, [candidates.OF_PRODUCT + name for name in spec.text_columns])
    rows = found.rows.take(pa.array(choose(texts, found.rows.column(candidates.WORTH).to_numpy(), config.budget)))
    if len(rows) < config.budget:
        log.info(
            "only %s products are worth asking about: no others are unsure, or none unlike these", f"{len(rows):,}"
        )
    asked = queue.questions(rows, spec.text_columns, picture)
    about = Queue(
        queue=queue.id_of(manifest["run"], [one.id for one in asked]),
        run=manifest["run"],
        catalog=config.catalog,
        model=" ".join(run.models),
        format=config.format,
        columns=tuple(columns),
        lists=spec.head == MANY_CATEGORIES,
        categories=spec.categories,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    FORMATS[config.format].write(about, asked, output)
    queue.keep(output, about, candidates.products_of(rows))
    tops = Counter(path.split(" > ")[0] for one in asked for path, _ in one.categories)
    return Exported(
        output=str(output),
        queue=about.queue,
        asked=len(asked),
        seen=found.seen,
        unsure=float(pc.mean(rows.column("confidence")).as_py()),
        alike=sum(one.alike for one in asked),
        categories=tuple(tops.most_common(10)),
    )


def take_answers(config: ImportConfig) -> answering.Imported:
    """Add what people answered to the corrections. Raises CatalogerError; nothing is written then."""
    about, products = queue.read(locate(config.queue))
    given = read_answers(locate(config.answers), about)
    output = locate(places.place(config.output, "--output"))
    check_writable(output)
    return answering.add(given, about, products, output, f"--answers {config.answers}")
