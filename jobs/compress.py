"""Make a cheaper model out of one or several, and register it in MLflow as challenger.

python jobs/compress.py --catalog catalog.parquet
ray job submit --working-dir . -- python jobs/compress.py --catalog s3://shop/labelled --layers 3 --storage s3://shop/checkpoints
"""

from _entry import parse, run
from cataloger.config import CompressConfig


def main() -> None:
    config = parse(CompressConfig)

    def job() -> None:
        from _tables import show_compressed
        from cataloger.compression.job import compress

        show_compressed(compress(config))

    run(job)


if __name__ == "__main__":
    main()
