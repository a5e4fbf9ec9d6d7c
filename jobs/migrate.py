"""Move published labels to another tree of categories: propose a map, which people edit, and publish the labels by it.

python jobs/migrate.py --labels labels/ --to taxonomy.parquet --examples labelled.parquet --output map/
python jobs/migrate.py --labels labels/ --apply map/ --output moved/
ray job submit --working-dir . -- python jobs/migrate.py --labels s3://shop/labels --to s3://shop/tree.parquet --output s3://shop/map
"""

from _entry import parse, run
from cataloger.config import MigrateConfig


def main() -> None:
    config = parse(MigrateConfig)

    def job() -> None:
        from _tables import show_map, show_moved
        from cataloger.adapting.migrate import apply_map, make_map

        if config.apply:
            show_moved(apply_map(config))
        else:
            show_map(make_map(config))

    run(job)


if __name__ == "__main__":
    main()
