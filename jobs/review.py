"""Ask people about the products that are worth it, and take their answers as corrections.

python jobs/review.py export --labels labels/ --catalog catalog/ --output queue/ --budget 500 --format labelstudio
python jobs/review.py import --answers project.json --queue queue/ --output corrections/
ray job submit --working-dir . -- python jobs/review.py export --labels s3://shop/labels --catalog s3://shop/catalog \\
    --output s3://shop/queue
"""

from _entry import parse_one, run
from cataloger.config import ExportConfig, ImportConfig


def main() -> None:
    config = parse_one({"export": ExportConfig, "import": ImportConfig}, str(__doc__).splitlines()[0])

    def job() -> None:
        from _tables import show_import, show_queue
        from cataloger.curation.review import export, take_answers

        if isinstance(config, ExportConfig):
            show_queue(export(config))
        else:
            show_import(take_answers(config))

    run(job)


if __name__ == "__main__":
    main()
