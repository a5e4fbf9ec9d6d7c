"""The whole job on a generated catalog: train, evaluate, label. What `make demo` runs."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cataloger.config import EvaluateConfig, LabelConfig, SampleConfig, TrainConfig
from cataloger.data import sample
from cataloger.infra import runtime

if TYPE_CHECKING:
    from cataloger.evaluation.report import Evaluation
    from cataloger.labeling.result import LabelResult
    from cataloger.training.job import TrainResult

log = logging.getLogger(__name__)

FOLDER = "demo"
LABELLED_ROWS = 6_000
UNLABELLED_ROWS = 20_000


@dataclass(frozen=True)
class DemoResult:
    """What the jobs returned; `words` is the evaluation of the model of words alone."""

    words: "Evaluation"
    training: "TrainResult"
    evaluation: "Evaluation"
    labels: "LabelResult"


def demo() -> DemoResult:
    """Everything lands in `demo/` and in the MLflow store of the working folder."""
    labelled, unlabelled = f"{FOLDER}/labelled", f"{FOLDER}/unlabelled"
    test_fraction = 0.15
    _say(f"jobs/sample.py --rows {LABELLED_ROWS} --output {labelled} --labelled")
    sample.generate(SampleConfig(rows=LABELLED_ROWS, output=labelled, labelled=True))
    _say(f"jobs/sample.py --rows {UNLABELLED_ROWS} --output {unlabelled} --seed 1")
    sample.generate(SampleConfig(rows=UNLABELLED_ROWS, output=unlabelled, seed=1))
    with runtime.session():
        from cataloger.training import job as training

        shared = f"--catalog {labelled} --test-fraction {test_fraction} --storage {FOLDER}/checkpoints"
        config = TrainConfig(catalog=labelled, test_fraction=test_fraction, storage=f"{FOLDER}/checkpoints")
        _say(f"jobs/train.py {shared} --base-model none --model-name words")
        by_words = training.train(replace(config, base_model="none", model_name="words"))
        # Imported when their turn comes: somebody is waiting for the training to start.
        from cataloger.evaluation import evaluate
        from cataloger.labeling import job as labeling

        _say(f"jobs/evaluate.py --catalog {labelled} --split test --model {by_words.model_uri}")
        words = evaluate.evaluate(EvaluateConfig(catalog=labelled, split="test", model=(by_words.model_uri,)))
        _say(f"jobs/train.py {shared} --epochs 2 --adversarial 0")
        trained = training.train(replace(config, epochs=2, adversarial=0.0))
        _say(f"jobs/evaluate.py --catalog {labelled} --split test --model {trained.model_uri}")
        scores = evaluate.evaluate(EvaluateConfig(catalog=labelled, split="test", model=(trained.model_uri,)))
        _say(f"jobs/label.py --catalog {unlabelled} --output {FOLDER}/labels --model {trained.model_uri}")
        labels = labeling.label(LabelConfig(catalog=unlabelled, output=f"{FOLDER}/labels", model=(trained.model_uri,)))
    return DemoResult(words, trained, scores, labels)


def _say(command: str) -> None:
    log.info("$ python %s", command)
