"""The whole job on a generated catalog: train, evaluate, label, and a table of what came out.

make demo
"""

import tyro

from _entry import run


def main() -> None:
    def job() -> None:
        from _tables import show, show_evaluation
        from cataloger.demo import demo

        result = demo()
        show_evaluation(result.words)
        show_evaluation(result.evaluation)
        labels = result.labels
        rows = [
            ("rows labelled", f"{labels.labelled:,} of {labels.rows:,}, {labels.rejects:,} rejected"),
            ("speed", f"{labels.rows / labels.seconds:,.0f} rows/s, start-up included"),
            ("labels", f"{labels.output}/run={labels.run}"),
            ("the night as a page", f"{labels.output}/run={labels.run}/_report.html"),
            ("model", result.training.model_uri),
            ("MLflow runs", f"train {result.training.run_id}"),
            ("", f"evaluate {result.evaluation.mlflow_run}"),
            ("", f"label {labels.mlflow_run}" if labels.mlflow_run else "label: finished earlier, nothing to do"),
        ]
        show("what came out", ("", ""), rows)
        print(
            "Look at the runs:  .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db   then open http://127.0.0.1:5000"
        )

    run(job)


if __name__ == "__main__":
    # It has no flags, but whoever asks for --help does not want it to start.
    tyro.cli(main, description=__doc__)
