"""Compare models on the same rows, see what a change would do to the catalog, and promote the better one.

python jobs/compare.py champion challenger --evaluate products.parquet --split test --promote
ray job submit --working-dir . -- python jobs/compare.py champion challenger --catalog s3://shop/catalog
"""

import sys

import tyro

from _entry import parse, run
from cataloger.config import CompareConfig


def main() -> None:
    config = parse(CompareConfig, tyro.conf.PositionalRequiredArgs)

    def job() -> None:
        from _tables import show_comparison
        from cataloger.evaluation.compare import compare, rollback

        if config.rollback:
            before, until_now = rollback(config.model_name)
            print(f"champion of {config.model_name} is version {before} again, no longer {until_now}")
            return
        result = compare(config)
        show_comparison(result, config.report)
        if config.promote and not (result.decision and result.decision.promoted):
            sys.exit(1)

    run(job)


if __name__ == "__main__":
    main()
