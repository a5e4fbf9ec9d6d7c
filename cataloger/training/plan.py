"""What a training is to do, checked as a whole before any work."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cataloger.config import SampleConfig, TrainConfig
from cataloger.data import sample
from cataloger.data.catalog import grouped, open_catalog
from cataloger.data.seen import Seen
from cataloger.errors import ConfigError
from cataloger.infra import places
from cataloger.infra.storage import Location, check_conditional, check_writable, locate
from cataloger.model.pretrained import checked_base_model, resolve_pooling
from cataloger.model.registry import is_trained
from cataloger.model.sight import EMBEDDED, check_sees, sight_of
from cataloger.spec import NO_NETWORK, ONE_CATEGORY, TAGS, Answer, Picture, Spec, Words
from cataloger.training.answers import Learnt, check_columns, learn
from cataloger.training.attributes import AUTO, OFF, told_attributes
from cataloger.training.checks import check_answers, check_base, check_flags, check_pictures, check_words_alone
from cataloger.training.continuing import Begun, check_keeping, continued
from cataloger.training.corrections import read_corrections
from cataloger.training.defaults import HELD_OUT, held_out_of, settled
from cataloger.training.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.training.rows import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A configuration with its catalogs opened: the training catalog is the first source."""

    config: TrainConfig
    spec: Spec
    sources: tuple[Source, ...]
    storage: Location
    lessons: Location | None = None
    """What teachers answered to the rows, where there are some."""
    goes_on_from: str = ""
    """The trained model that is the base model: NAME/VERSION, or where it lies."""
    seen_before: Seen | None = None
    """The rows that it saw."""


def plan(config: TrainConfig, categories: tuple[str, ...] = ()) -> Plan:
    """For the categories of the catalog, or for these. Raises CatalogerError that says what is wrong, where, and what to do."""
    check_flags(config)
    goes_on = is_trained(config.base_model)
    check_keeping(config, goes_on)
    config, begun = continued(config) if goes_on else (config, None)
    pooling, picture = NO_NETWORK, None
    if config.image_column:
        check_pictures(config)
        sight = sight_of(config.image_model)
        if config.image_model != EMBEDDED:
            check_sees(sight)
        picture = sight.picture(config.image_column)
        if sight.folder == Path(config.image_model).expanduser():
            config = replace(config, image_model=str(sight.folder.resolve()))
    if config.base_model == NO_NETWORK:
        check_words_alone(config)
    elif not config.text_columns:
        pooling = "mean"  # of the places of a picture
    else:
        folder = checked_base_model(config.base_model)
        if folder == Path(config.base_model).expanduser():
            # Workers have working folders of their own.
            config = replace(config, base_model=str(folder.resolve()))
        check_base(config, folder)
        pooling = resolve_pooling(folder, config.pooling)
    check_columns(config.label_column)
    learnt, sources = _open(config, picture, categories)
    if config.validation_fraction is None:
        config = replace(config, validation_fraction=_held_out(config, learnt, begun))
    held_out = 0.0 if config.eval_catalog else config.validation_fraction or 0.0
    check_answers(config, learnt, picture)
    head = learnt[0].head
    if pooling != NO_NETWORK:
        rows = round(learnt[0].rows * (1 - config.test_fraction) * (1 - held_out))
        config, chosen = settled(config, rows, head, begun is not None and begun.knows(learnt[0].categories))
        if config.adversarial and picture:
            raise ConfigError("--adversarial: is for networks that read alone; leave it out with --image-column")
        if chosen:
            log.info("%s", chosen)
    spec = Spec(
        categories=learnt[0].categories,
        text_columns=config.text_columns,
        max_tokens=config.max_tokens,
        pooling=pooling,
        catalog_fingerprint=sources[0].catalog.fingerprint,
        test_fraction=config.test_fraction,
        test_start=config.test_start,
        validation_fraction=held_out,
        head=head,
        label_column=config.label_column[0] if head == TAGS else "",
        group_column=config.group_column,
        words=Words() if pooling == NO_NETWORK else None,
        picture=picture,
        others=tuple(_further(one, learnt[0], config) for one in learnt[1:]),
    )
    storage = locate(places.place(config.storage, "--storage"))
    check_writable(storage)
    check_conditional(storage)
    before = {"goes_on_from": begun.name, "seen_before": begun.saw} if begun else {}
    return Plan(config, spec, tuple(sources), storage, **before)  # type: ignore[arg-type]


def _held_out(config: TrainConfig, learnt: Sequence[Learnt], begun: Begun | None) -> float:
    """The share that is held out where nobody says how much. Of groups, which may be few, and of several answers or lists of them, of which
    it is not known how many rows have one, a tenth; where a trained model is gone on with, none that it has learnt from."""
    few = config.group_column or len(learnt) > 1 or learnt[0].head != ONE_CATEGORY
    share = HELD_OUT[0] if few else held_out_of(learnt[0].rows)
    return min(share, begun.held_out or share) if begun else share


def _further(one: Learnt, first: Learnt, config: TrainConfig) -> Answer:
    allowed: tuple[tuple[int, ...] | None, ...] = ()
    if one.head == TAGS != first.head and config.category_attributes not in (AUTO, OFF):
        allowed = told_attributes(config.category_attributes, first.categories, one.categories)
    return Answer(one.column, one.head, one.categories, allowed=allowed)


def _open(
    config: TrainConfig, picture: Picture | None, categories: tuple[str, ...]
) -> tuple[list[Learnt], list[Source]]:
    """(what each label column teaches, the catalogs to read). Raises CatalogError."""
    uris = [config.catalog or _sample_catalog(), *filter(None, [config.eval_catalog])]
    others = grouped(config.group_column)
    balanced = {config.group_balance: "--group-balance"} if config.group_balance else {}
    catalogs = [
        open_catalog(uri, config.id_column, config.text_columns, config.label_column, others | own, picture)
        for uri, own in zip(uris, (balanced, {}), strict=False)
    ]
    corrections = read_corrections(config.corrections, catalogs[0], config) if config.corrections else None
    if corrections:
        there = len(corrections.pins.table) - len(corrections.rows)
        log.info(
            "corrections: of %s products in the catalog, and of %s others", f"{there:,}", f"{len(corrections.rows):,}"
        )
    learnt = [
        learn(column, catalogs, config, Counter() if number or not corrections else corrections.counts, categories)
        for number, column in enumerate(config.label_column)
    ]
    sources = [
        Source(catalog, learnt[0].ids[number], use, tuple(one.ids[number] for one in learnt[1:]))
        for number, (use, catalog) in enumerate(zip((TRAINING, VALIDATION), catalogs, strict=False))
    ]
    sources = [replace(source, corrections=corrections) for source in sources]
    if config.unlabelled_catalog:
        catalog = open_catalog(config.unlabelled_catalog, config.id_column, config.text_columns, others=others)
        sources.append(Source(catalog, {}, UNLABELLED, ({},) * (len(learnt) - 1)))
    return learnt, sources


def _sample_catalog() -> str:
    folder = Path("sample-catalog/labelled")
    if not folder.exists():
        log.info("no --catalog: generating a sample catalog in %s", folder)
        sample.generate(SampleConfig(output=str(folder), labelled=True))
    return str(folder)
