"""Generate a catalog to try things on: three category levels, a long tail, typos, several languages, repeats.

python jobs/sample.py --rows 100000 --output sample-catalog/labelled --labelled
"""

from _entry import parse, run
from cataloger.config import SampleConfig


def main() -> None:
    config = parse(SampleConfig)

    def job() -> None:
        from cataloger.data.sample import generate

        print(f"{generate(config):,} rows in {config.output}")

    run(job)


if __name__ == "__main__":
    main()
