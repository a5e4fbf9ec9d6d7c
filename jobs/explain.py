"""Show why products have their category: which words and which parts of the picture speak for it, as a page.

python jobs/explain.py --model models:/product-category@champion --catalog catalog/ --ids sku-1 sku-2
ray job submit --working-dir . -- python jobs/explain.py --catalog s3://shop/catalog --ids sku-1 --output s3://shop/why.html
"""

from _entry import parse, run
from cataloger.config import ExplainConfig


def main() -> None:
    config = parse(ExplainConfig)

    def job() -> None:
        from _tables import show_explanation
        from cataloger.explaining.job import explain

        for product in explain(config):
            show_explanation(product)
        print(f"\nas a page: {config.output}")

    run(job)


if __name__ == "__main__":
    main()
