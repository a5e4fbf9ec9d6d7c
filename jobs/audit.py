"""Find rows of a labelled catalog whose category is probably wrong, worst first, with a better one.

python jobs/audit.py --catalog catalog.parquet --models models:/shop/1 models:/shop/2 --output suspects.parquet
ray job submit --working-dir . -- python jobs/audit.py --catalog s3://shop/labelled --output s3://shop/suspects.parquet
"""

from _entry import parse, run
from cataloger.config import AuditConfig


def main() -> None:
    config = parse(AuditConfig)

    def job() -> None:
        from _tables import show
        from cataloger.evaluation.audit import audit

        result = audit(config)
        title = f"{result.suspects:,} of {result.rows:,} rows are probably in the wrong category: {result.output}"
        show(title, ("the worst", "is in", "belongs in"), result.worst)

    run(job)


if __name__ == "__main__":
    main()
