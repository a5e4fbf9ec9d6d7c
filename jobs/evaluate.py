"""Measure a model on a labelled catalog; metrics and pictures go to MLflow.

python jobs/evaluate.py --catalog test.parquet --model models:/product-category@champion
ray job submit --working-dir . -- python jobs/evaluate.py --catalog s3://shop/test --predictions s3://shop/predictions.parquet
"""

from _entry import parse, run
from cataloger.config import EvaluateConfig


def main() -> None:
    config = parse(EvaluateConfig)

    def job() -> None:
        from _tables import show_evaluation
        from cataloger.evaluation.evaluate import evaluate

        show_evaluation(evaluate(config))

    run(job)


if __name__ == "__main__":
    main()
