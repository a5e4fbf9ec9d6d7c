"""Show parameters and metrics of MLflow runs side by side, differences in bold.

python jobs/compare.py RUN_A RUN_B
"""

import tyro

from _entry import parse, run
from cataloger.config import CompareConfig


def main() -> None:
    config = parse(CompareConfig, tyro.conf.PositionalRequiredArgs)

    def job() -> None:
        from _tables import show
        from cataloger.comparing import compare

        result = compare(config)
        rows = [(f"{row.kind} {row.name}", *row.values, "≠" if row.differs else "") for row in result.rows]
        show("runs side by side", ("", *result.names, "differs"), rows, [row.differs for row in result.rows])

    run(job)


if __name__ == "__main__":
    main()
