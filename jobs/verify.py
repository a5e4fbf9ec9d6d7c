"""Re-read the published run against its manifest and its catalog; for cron and for auditors.

python jobs/verify.py --output labels/
"""

from _entry import parse, run
from cataloger.config import VerifyConfig


def main() -> None:
    config = parse(VerifyConfig)

    def job() -> None:
        from cataloger.publishing.upkeep import verify

        result = verify(config)
        why = result.ids_unchecked
        ids = f"ids not compared: {why}" if why else "ids equal to the catalog's"
        pins = f", all {result.pins:,} pins of its products in the labels" if result.pins else ""
        table = f", and they are in {result.table}" if result.table else ""
        print(f"run {result.run} is whole: {result.rows:,} rows in {result.files:,} files, {ids}{pins}{table}")

    run(job)


if __name__ == "__main__":
    main()
