"""Teach a model further categories, by their names and a few examples, without a training.

python jobs/extend.py --categories new.parquet --catalog labelled.parquet --model models:/shop@champion --model-name shop
ray job submit --working-dir . -- python jobs/extend.py --categories s3://shop/new.parquet --catalog s3://shop/labelled
"""

from _entry import parse, run
from cataloger.config import ExtendConfig


def main() -> None:
    config = parse(ExtendConfig)

    def job() -> None:
        from _tables import show
        from cataloger.adapting.extend import extend

        found = extend(config)
        rows = [
            ("new categories", f"{found.categories:,}"),
            ("examples of them", f"{found.examples:,}"),
            (
                f"products of old categories{' that neither model has learnt' if found.unlearnt else ''}",
                f"{found.rows:,}",
            ),
            ("accuracy on these before", f"{found.before:.4f}"),
            ("accuracy on these now", f"{found.after:.4f}"),
            ("of these in a new category now", f"{found.taken:.2%}"),
        ]
        show(f"{found.model_uri} (MLflow run {found.run_id})", ("", ""), rows)

    run(job)


if __name__ == "__main__":
    main()
