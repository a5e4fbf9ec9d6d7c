"""Two DAGs: the night (label, verify), and the week (train, promote the new model if it is better).

Copy this file into the DAG folder and set its Airflow variables; docs/schedulers.md in the checkout lists them.
Nothing of cataloger or Ray has to be installed in Airflow: the jobs run in the Python of the checkout.
"""

import hashlib
import inspect
import os
import shlex
import signal
import subprocess
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, Param, Variable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

# In UTC. The week is a DAG of its own: a training that takes longer than a day must not hold up the labels of the next night.
NIGHTLY = "0 2 * * *"
WEEKLY = "0 8 * * 0"
# Labels that are published and verified: schedule the DAGs that read them with `schedule=[Asset("cataloger_labels")]`.
LABELS = Asset("cataloger_labels")
CHAMPION = Asset("cataloger_champion")

# What the jobs end with, as in docs/guarantees.md.
DONE, NOT_PROMOTED, BAD_INPUT, NOT_FIT, STOPPED_BY_HAND = 0, 1, 2, 3, 130
# The same command would end in the same way. All else is a crash, after which the same command goes on where it was.
FINAL = (BAD_INPUT, NOT_FIT, STOPPED_BY_HAND)


def on_ray(name: str, retried: str, mlflow: str, *command: str) -> None:
    """Run a command as the Ray job of this name, and end with its exit code: `ray job submit` makes every failure a 1.

    Python of the checkout runs this source, for that has Ray. A job that is still running is followed, not started twice.
    """
    import asyncio
    import shlex
    import sys
    import time
    import traceback

    try:
        from ray.job_submission import JobStatus, JobSubmissionClient

        client = JobSubmissionClient()
        known = {job.submission_id: job for job in client.list_jobs()}
        # Ray never takes an id twice: after a job that has ended, the next one gets a number.
        last, number, submission = None, 1, name
        while submission in known:
            last, number = known[submission], number + 1
            submission = f"{name}-{number}"
        # It may have come to its end while nobody was following: a retry takes that, rather than train once more.
        unread = retried and last and last.driver_exit_code in (0, 1, 3)
        if last and (unread or not last.status.is_terminal()):
            submission = last.submission_id
            print(f"following Ray job {submission}", flush=True)
        else:
            variables = {"MLFLOW_TRACKING_URI": mlflow} if mlflow else {}
            runtime = {"working_dir": ".", "env_vars": variables}
            client.submit_job(entrypoint=shlex.join(command), submission_id=submission, runtime_env=runtime)
            print(f"started Ray job {submission}", flush=True)

        async def follow() -> None:
            async for lines in client.tail_job_logs(submission):
                print(lines, end="", flush=True)

        asyncio.run(follow())
        while not (job := client.get_job_info(submission)).status.is_terminal():
            time.sleep(1)
        if job.status == JobStatus.STOPPED:
            print(f"Ray job {submission} was stopped", flush=True)
            sys.exit(130)
        if job.driver_exit_code is None:
            print(job.message, flush=True)
        sys.exit(4 if job.driver_exit_code is None else job.driver_exit_code)
    except Exception:
        # Not Python's 1: that says "not promoted".
        traceback.print_exc()
        sys.exit(4)


def setting(name: str, default: str | None = None) -> str:
    """Read in the task: at import it would be a query each time that Airflow parses this file."""
    value = Variable.get(f"cataloger_{name}", default=default)
    if value is None:
        raise AirflowFailException(f"set the Airflow variable cataloger_{name}; docs/schedulers.md says to what")
    return str(value)


def run_job(name: str, *flags: str) -> tuple[int, str]:
    """Run a job with these flags, on the Ray cluster if there is one: its exit code, and the sentence that explains it."""
    context = get_current_context()
    attempt, checkout = context["ti"], setting("checkout")
    address, mlflow = setting("ray_address", os.environ.get("RAY_ADDRESS", "")), setting("mlflow", "")
    # A task that a person has cleared begins anew, and is no retry.
    first = attempt.max_tries - (attempt.task.retries or 0) + 1
    # Modules that are meant for Airflow must not reach the jobs.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"PYTHONUNBUFFERED": "1"} | ({"MLFLOW_TRACKING_URI": mlflow} if mlflow else {})
    command = [f"jobs/{name}.py", *flags, *shlex.split(setting(f"{name}_flags", ""))]
    if address:
        environment["RAY_ADDRESS"] = address
        night = context["dag_run"].run_after.strftime("%Y-%m-%d")
        program = f"{inspect.getsource(on_ray)}\nimport sys\non_ray(*sys.argv[1:])"
        retried = "retried" if attempt.try_number > first else ""
        # Another catalog, or other flags, are another job.
        asked = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:6]
        command = ["-c", program, f"{name}-{night}-{asked}", retried, mlflow, "python", *command]
    sentence = ""
    with subprocess.Popen(
        [f"{checkout}/.venv/bin/python", *command],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        # Airflow ends a task with SIGTERM. A job of this machine must end as well; one on the cluster goes on.
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                if line.startswith("error: "):
                    sentence = line.removeprefix("error: ").strip()
        except BaseException:
            process.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    return process.returncode, sentence


def run_to(good: tuple[int, ...], name: str, *flags: str) -> tuple[int, str]:
    """Run a job that must end with one of these exit codes. Raises AirflowFailException where a retry would not help."""
    code, sentence = run_job(name, *flags)
    if code in good:
        return code, sentence
    problem = f"jobs/{name}.py ended with exit code {code}: {sentence or 'see the log above'}"
    raise AirflowFailException(problem) if code in FINAL else RuntimeError(problem)


def tell_next(sentence: str) -> None:
    get_current_context()["ti"].xcom_push("sentence", sentence)


def told_by(task_id: str) -> str:
    return str(get_current_context()["ti"].xcom_pull(task_ids=task_id, key="sentence"))


SHARED: dict[str, Any] = {
    "catchup": False,  # a night that was missed is made up for by the next one
    "max_active_runs": 1,
    "tags": ["cataloger"],
    "default_args": {"retries": 3, "retry_delay": timedelta(minutes=5)},
}


@dag(
    schedule=NIGHTLY,
    params={
        "publish_anyway": Param(
            False, type="boolean", description="Publish labels that were held back, after a look at their page."
        )
    },
    doc_md="Labels the catalog and verifies what is published. A night that is held back ends in `held_back`.",
    **SHARED,
)
def cataloger_nightly() -> None:
    @task.branch
    def label() -> str:
        anyway = ["--publish-anyway"] if get_current_context()["params"]["publish_anyway"] else []
        model = f"models:/{setting('model_name')}@champion"
        places = ("--catalog", setting("catalog"), "--output", setting("output"))
        code, sentence = run_to((DONE, NOT_FIT), "label", *places, "--model", model, *anyway)
        tell_next(sentence)
        return "verify" if code == DONE else "held_back"

    @task(outlets=[LABELS])
    def verify() -> None:
        """Exit code 3 means that files of the published run are damaged: that is red."""
        run_to((DONE,), "verify", "--output", setting("output"))

    @task
    def held_back() -> None:
        """Green, for nothing is broken. To be told, give this task an `on_success_callback`."""
        print(f"held back: {told_by('label')}")
        print("Readers keep the labels of the night before. Look at the page of the run that is named above,")
        print(f"{setting('output')}/run=…/_report.html. If the labels are as they should be, trigger this DAG with")
        print("publish_anyway (the flag --publish-anyway): nothing is labelled twice.")

    label() >> [verify(), held_back()]


@dag(
    schedule=WEEKLY,
    doc_md="Trains a model, compares it with the champion, and promotes it if it is better.",
    **SHARED,
)
def cataloger_weekly() -> None:
    @task
    def train() -> None:
        # compare.py judges by the rows that no training has seen: those of the champion must be the same.
        places = ("--catalog", setting("labelled"), "--storage", setting("storage"))
        run_to((DONE,), "train", *places, "--test-fraction", "0.2", "--model-name", setting("model_name"))

    @task.branch
    def compare() -> str:
        rows = ("--evaluate", setting("labelled"), "--split", "test", "--catalog", setting("catalog"))
        models = ("champion", "challenger", "--model-name", setting("model_name"))
        page = ("--report", f"{setting('storage')}/comparison.html")
        code, _ = run_to((DONE, NOT_PROMOTED), "compare", *models, *rows, *page, "--promote")
        return "promoted" if code == DONE else "not_promoted"

    @task(outlets=[CHAMPION])
    def promoted() -> None:
        print("the new model is the champion: the next night labels with it")

    @task
    def not_promoted() -> None:
        """A good end: most weeks bring no better model."""
        print(f"the champion stays; the log of compare says why, and {setting('storage')}/comparison.html shows it")

    train() >> compare() >> [promoted(), not_promoted()]


cataloger_nightly()
cataloger_weekly()
