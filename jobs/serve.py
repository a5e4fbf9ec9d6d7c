"""Answer over HTTP, product by product, with what label.py would publish.

python jobs/serve.py --model models:/product-category@champion
ray job submit --working-dir . -- python jobs/serve.py --model models:/product-category@champion --host 0.0.0.0 --token-file /home/ubuntu/token
"""

from _entry import parse, run
from cataloger.config import ServeConfig


def main() -> None:
    config = parse(ServeConfig)

    def job() -> None:
        from cataloger.live.job import serve_until_stopped

        serve_until_stopped(config)

    run(job)


if __name__ == "__main__":
    main()
