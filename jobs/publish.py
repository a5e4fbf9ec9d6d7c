"""List the runs of an output folder, publish another one (rollback), remove old ones.

python jobs/publish.py --output labels/
python jobs/publish.py --output labels/ --run 9f86d081884c7d65
python jobs/publish.py --output labels/ --prune 7
"""

from _entry import parse, run
from cataloger.config import PublishConfig


def main() -> None:
    config = parse(PublishConfig)

    def job() -> None:
        from _tables import show
        from cataloger.publishing.upkeep import publish

        rows = [
            (
                run.run,
                "published" if run.published else "" if run.complete else "unfinished",
                run.created,
                run.model,
                f"{run.rows:,}" if run.complete else "",
                f"{run.rejects:,}" if run.complete else "",
            )
            for run in publish(config)
        ]
        show(f"runs in {config.output}", ("run", "state", "created", "model", "rows", "rejects"), rows)

    run(job)


if __name__ == "__main__":
    main()
