"""Label every row of a catalog and publish the labels as one snapshot.

python jobs/label.py --catalog catalog/ --output labels/
ray job submit --working-dir . -- python jobs/label.py --catalog s3://shop/catalog --output s3://shop/labels
"""

from _entry import parse, run
from cataloger.config import LabelConfig


def main() -> None:
    config = parse(LabelConfig)

    def job() -> None:
        from _tables import show, show_rules
        from cataloger.labeling.job import label

        result = label(config)
        rows = [
            ("rows in", f"{result.rows:,}"),
            ("labelled", f"{result.labelled:,}"),
            ("rejected", f"{result.rejects:,}"),
            ("carried over from the published run", f"{result.cost.carried:,}"),
            ("distinct texts through the model", f"{result.cost.asked:,}"),
            *([("of these by words alone", f"{result.cost.alone:,}")] if result.cost.alone else []),
            *(result.decided.figures.items() if result.decided else ()),
            ("padding", f"{result.cost.padding_waste:.1%}"),
            ("seconds, start-up included", f"{result.seconds:.1f}"),
            ("rows/s", f"{result.rows / result.seconds:,.0f}"),
        ]
        rows.append(("as a page", f"{result.output}/run={result.run}/_report.html"))
        show(f"{result.output}/run={result.run}", ("published", ""), rows)
        if result.decided:
            show_rules(result.decided)

    run(job)


if __name__ == "__main__":
    main()
