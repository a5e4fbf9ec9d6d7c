"""Train a model on a labelled catalog, of words and of a fine-tuned BERT, and register it in MLflow.

python jobs/train.py --catalog catalog.parquet
ray job submit --working-dir . -- python jobs/train.py --catalog s3://shop/labelled --storage s3://shop/checkpoints --num-workers 8
"""

from _entry import parse, run
from cataloger.config import TrainConfig


def main() -> None:
    config = parse(TrainConfig)

    def job() -> None:
        from _tables import show, show_sweep

        if config.sweep:
            from cataloger.training.sweep import sweep

            show_sweep(sweep(config))
            return
        from cataloger.training.job import train

        result = train(config)
        rows = [(name.removeprefix("val_"), f"{value:.4f}") for name, value in sorted(result.metrics.items())]
        show(f"{result.model_uri} (MLflow run {result.run_id})", ("validation", ""), rows)

    run(job)


if __name__ == "__main__":
    main()
