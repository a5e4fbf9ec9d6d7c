"""Measure a model on a labelled catalog; metrics, report and pictures go to MLflow."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from cataloger.bundle import digest, read_spec
from cataloger.config import EvaluateConfig
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.errors import ConfigError
from cataloger.evaluation.fairness import judge
from cataloger.evaluation.groups_page import groups_metrics, groups_page, groups_table
from cataloger.evaluation.predictions import (
    DECIDED,
    SLICE,
    About,
    NothingToScore,
    Predictions,
    decided,
    file_of,
)
from cataloger.evaluation.questions import Question, label_columns, question_of
from cataloger.evaluation.report import Evaluation, log_scores, score
from cataloger.evaluation.tagging import OWN
from cataloger.heads.columns import columns_of
from cataloger.infra import places, runtime, tracking, vitals
from cataloger.infra.storage import check_writable, locate
from cataloger.labeling.predict import predict_rows
from cataloger.labeling.reading import TEXT
from cataloger.model import registry
from cataloger.model.ensemble import fetch_models
from cataloger.spec import TAGS, Spec

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Predict every labelled row of the catalog and score it. Raises CatalogerError."""
    tracking_uri = tracking.connect()
    source = fetch_models(config.model)
    spec = read_spec(source.folder).reading(config.text_columns, config.image_column)
    if config.split == "test" and not spec.test_fraction:
        raise ConfigError(f"--split test: model {source.uri} was trained without --test-fraction; leave the flag out")
    columns = label_columns(config, spec, _open(config, spec, ()))
    catalog = _open(config, spec, columns)
    questions = [
        question_of(number, answer, column, catalog, config)
        for number, (answer, column) in enumerate(zip(spec.answers, columns, strict=False))
        if column
    ]
    if config.group_columns and questions[0].spec.head == TAGS:
        raise ConfigError(
            "--group-columns: compares categories, and this model's first answer is tags; leave the flag out"
        )
    if config.group_columns:
        check_writable(locate(places.place(config.groups_report, "--groups-report")).parent)
    if config.predictions:
        check_writable(locate(places.place(config.predictions, "--predictions")).parent)
    about = {"model": source.uri, "model_digest": digest(source.folder), "split": config.split}
    kept = {"id": config.id_column, "text": TEXT} | {one.written: one.column for one in questions}
    if spec.tags:
        kept |= {f"{OWN}{number}": name for number, name in enumerate(spec.text_columns)}
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        with (
            tracking.run("evaluate", Path(catalog.location.path).stem, config, catalog, about) as run_id,
            vitals.watch(run_id),
        ):
            ask = functools.partial(
                predict_rows,
                catalog=catalog,
                source=source,
                spec=spec,
                held_out=config.split == "test",
                tiers=config.tiers == "auto",
                precision=config.precision,
                use_gpu=config.use_gpu,
            )
            found = ask("evaluate", kept=kept | {SLICE + name: name for name in _sliced(config)})
            labels = found.labels
            # A row that is split by its picture is another one without it.
            if spec.picture and spec.text_columns and spec.group_column != spec.picture.column:
                blind = ask("evaluate without pictures", kept={}, blind=True).labels
                labels = labels.append_column(SLICE + DECIDED, decided(labels, blind))
            described = About(
                model=source.uri,
                catalog=config.catalog,
                catalog_fingerprint=catalog.fingerprint,
                id_column=config.id_column,
                label_column=config.label_column[0],
                split=config.split,
                categories=spec.categories,
                texts_per_second=found.cost.answered_per_second,
                text_columns=spec.text_columns,
            )
            results = [_told(*one, config, run_id) for one in _answered(questions, labels, described)]
            result = replace(results[0], others=tuple(results[1:]))
            registry.tag_version(source, {"evaluation_run": run_id, "accuracy": f"{result.overall.accuracy:.4f}"})
    return result


def _sliced(config: EvaluateConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*config.slice_columns, *config.group_columns)))


def _answered(questions: Sequence[Question], labels: pa.Table, about: About) -> list[tuple[Question, Predictions]]:
    """What the model said to each question. Raises NothingToScore where no row has the first answer; without others it goes on."""
    found: list[tuple[Question, Predictions]] = []
    for one in questions:
        own = replace(about, categories=one.spec.categories, label_kind=one.kind)
        own = replace(own, label_column=one.column) if one.number else own
        try:
            found.append((one, Predictions.of(one.of(labels), one.names, own, columns_of(one.spec))))
        except NothingToScore:
            if not one.number:
                raise
            log.info("no row to score has a value in column %r: that answer is not scored", one.column)
    (question, first), *others = found
    further = tuple(one.spec.label_column for one, _ in others)
    return [(question, replace(first, about=replace(first.about, further=further))), *others]


def _told(question: Question, predictions: Predictions, config: EvaluateConfig, run_id: str) -> Evaluation:
    """The scores of one answer; what the model said goes to MLflow."""
    if not question.number and predictions.about.knows_the_answers:
        log.warning(
            "%s was trained on %.0f%% of these rows: its scores are too good",
            predictions.about.model,
            100 * (predictions.about.seen or 0),
        )
    data = predictions.to_parquet()
    if config.predictions and not question.number:
        locate(config.predictions).write(data)
    tracking.log_file(data, file_of(question.spec.label_column if question.number else ""))
    result = score(predictions, run_id)
    result = replace(result, answer=question.spec.label_column) if question.number else result
    log_scores(result, predictions, question.before)
    if not config.group_columns or predictions.places or question.number:
        return result
    groups = judge(predictions, config.group_columns)
    page = groups_page(groups, predictions.about)
    locate(config.groups_report).write(page.encode())
    tracking.log_text(page, "groups.html")
    tracking.log_text(groups_table(groups).to_csv(index=False), "groups.csv")
    tracking.log_metrics(groups_metrics(groups))
    return replace(result, groups=tuple(groups))


def _open(config: EvaluateConfig, spec: Spec, labels: Sequence[str]) -> Catalog:
    """The catalog with the column that the model's split went by: needed for the rows it left out, else welcome."""
    own = dict.fromkeys(config.slice_columns, "--slice-columns") | dict.fromkeys(
        config.group_columns, "--group-columns"
    )
    group = grouped(spec.group_column)
    needed = group if config.split == "test" else {}
    texts, picture = spec.text_columns, spec.picture
    labels = [name for name in labels if name]
    catalog = open_catalog(config.catalog, config.id_column, texts, labels, needed | own, picture)
    if group and not needed and all(spec.group_column in schema.names for schema in catalog.schemas):
        catalog = open_catalog(config.catalog, config.id_column, texts, labels, group | own, picture)
    return catalog
