"""The catalog as Dagster assets: `labels` every night, with checks; `challenger` and `champion` every week.

    dagster dev -f cataloger_assets.py

Set the environment variables below; docs/schedulers.md in the checkout says to what. Nothing of cataloger or Ray has to be
installed beside Dagster: the jobs run in the Python of the checkout.
"""

import hashlib
import inspect
import os
import shlex
import subprocess
from collections.abc import Iterator

import dagster as dg

# In UTC.
NIGHTLY = "0 2 * * *"
WEEKLY = "0 8 * * 0"
# The tag with the date of a scheduled run. Dagster gives it to a re-execution, too, which then follows a job that still runs.
DATE = "cataloger/date"

# What the jobs end with, as in docs/guarantees.md.
DONE, NOT_PROMOTED, BAD_INPUT, NOT_FIT, STOPPED_BY_HAND = 0, 1, 2, 3, 130
# The same command would end in the same way. All else is a crash, after which the same command goes on where it was.
FINAL = (BAD_INPUT, NOT_FIT, STOPPED_BY_HAND)
CRASHED = dg.RetryPolicy(max_retries=3, delay=300)


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


class Cataloger(dg.ConfigurableResource):
    """Where everything lies, and how a job is run."""

    checkout: str
    catalog: str
    output: str
    labelled: str
    storage: str
    model_name: str
    ray_address: str = ""
    mlflow: str = ""
    label_flags: str = ""
    verify_flags: str = ""
    train_flags: str = ""
    compare_flags: str = ""

    def run(self, name: str, date: str, retried: bool, *flags: str) -> tuple[int, str]:
        """Run a job, on the Ray cluster if there is one: its exit code, and the sentence that explains it."""
        # Modules that are meant for Dagster must not reach the jobs.
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
        environment |= {"PYTHONUNBUFFERED": "1"} | ({"MLFLOW_TRACKING_URI": self.mlflow} if self.mlflow else {})
        command = [f"jobs/{name}.py", *flags, *shlex.split(getattr(self, f"{name}_flags"))]
        if self.ray_address:
            environment["RAY_ADDRESS"] = self.ray_address
            program = f"{inspect.getsource(on_ray)}\nimport sys\non_ray(*sys.argv[1:])"
            # Another catalog, or other flags, are another job.
            asked = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:6]
            job = (f"{name}-{date}-{asked}", "retried" if retried else "", self.mlflow)
            command = ["-c", program, *job, "python", *command]
        sentence = ""
        with subprocess.Popen(
            [f"{self.checkout}/.venv/bin/python", *command],
            cwd=self.checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                for line in process.stdout or ():
                    print(line, end="", flush=True)
                    if line.startswith("error: "):
                        sentence = line.removeprefix("error: ").strip()
            except BaseException:
                # Dagster ends a run with an exception. A job of this machine must end as well; one on the cluster goes on.
                process.terminate()
                raise
        return process.returncode, sentence


def run_to(
    good: tuple[int, ...], context: dg.OpExecutionContext, cataloger: Cataloger, name: str, *flags: str
) -> tuple[int, str]:
    """Run a job that must end with one of these exit codes. Raises Failure; without a retry where none would help."""
    date = context.run.tags.get(DATE, context.run_id[:8])
    code, sentence = cataloger.run(name, date, context.retry_number > 0, *flags)
    if code in good:
        return code, sentence
    problem = f"jobs/{name}.py ended with exit code {code}: {sentence or 'see its output'}"
    raise dg.Failure(problem, allow_retries=code not in FINAL)


class Night(dg.Config):
    publish_anyway: bool = False
    """Publish labels that were held back, after a look at their page."""


@dg.asset(
    output_required=False,
    check_specs=[dg.AssetCheckSpec("fit_to_publish", asset="labels", description="A strange night is held back.")],
    retry_policy=CRASHED,
    group_name="cataloger",
    kinds={"ray", "parquet"},
)
def labels(
    context: dg.AssetExecutionContext, config: Night, cataloger: Cataloger
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """The published labels of the catalog. A night that is held back materializes nothing: readers keep the labels they have."""
    anyway = ["--publish-anyway"] if config.publish_anyway else []
    places = ("--catalog", cataloger.catalog, "--output", cataloger.output)
    model = ("--model", f"models:/{cataloger.model_name}@champion")
    code, sentence = run_to((DONE, NOT_FIT), context.op_execution_context, cataloger, "label", *places, *model, *anyway)
    if code == DONE:
        yield dg.MaterializeResult(check_results=[dg.AssetCheckResult(check_name="fit_to_publish", passed=True)])
        return
    then = (
        f"Readers keep the labels of the night before. Look at the page of this run, {cataloger.output}/run=…/_report.html. "
        "If the labels are as they should be, launch the job again with publish_anyway (the flag --publish-anyway): "
        "nothing is labelled twice."
    )
    yield dg.AssetCheckResult(
        check_name="fit_to_publish",
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"held back: {sentence}",
        metadata={"what to do": then},
    )


@dg.asset_check(asset=labels, blocking=True, retry_policy=CRASHED)
def whole(context: dg.AssetCheckExecutionContext, cataloger: Cataloger) -> dg.AssetCheckResult:
    """All files of the published run are there and undamaged. If not, the run of this job fails."""
    code, sentence = run_to(
        (DONE, NOT_FIT), context.op_execution_context, cataloger, "verify", "--output", cataloger.output
    )
    return dg.AssetCheckResult(passed=code == DONE, description=sentence or None)


@dg.asset(retry_policy=CRASHED, group_name="cataloger", kinds={"ray", "mlflow"})
def challenger(context: dg.AssetExecutionContext, cataloger: Cataloger) -> None:
    """A new model. It is judged by rows that no training has seen: those that the champion left out must be the same."""
    places = ("--catalog", cataloger.labelled, "--storage", cataloger.storage)
    name = ("--model-name", cataloger.model_name)
    run_to((DONE,), context.op_execution_context, cataloger, "train", *places, "--test-fraction", "0.2", *name)


@dg.asset(
    deps=[challenger], output_required=False, retry_policy=CRASHED, group_name="cataloger", kinds={"ray", "mlflow"}
)
def champion(context: dg.AssetExecutionContext, cataloger: Cataloger) -> Iterator[dg.MaterializeResult]:
    """The model that the night labels with. Most weeks bring no better one: that is a good end, and materializes nothing."""
    rows = ("--evaluate", cataloger.labelled, "--split", "test", "--catalog", cataloger.catalog)
    models = ("champion", "challenger", "--model-name", cataloger.model_name)
    run = context.op_execution_context
    page = f"{cataloger.storage}/comparison.html"
    flags = (*models, *rows, "--report", page, "--promote")
    code, _ = run_to((DONE, NOT_PROMOTED), run, cataloger, "compare", *flags)
    if code == DONE:
        yield dg.MaterializeResult()
    else:
        why = f"The champion stays. The output of compare.py says why, and {page} shows it."
        context.log_event(dg.AssetObservation("champion", description=why, metadata={"promoted": False}))


nightly = dg.define_asset_job("cataloger_nightly", dg.AssetSelection.assets(labels))
weekly = dg.define_asset_job("cataloger_weekly", dg.AssetSelection.assets(challenger, champion))


def unless_running(context: dg.ScheduleEvaluationContext, job: str) -> dg.RunRequest | dg.SkipReason:
    """At most one run of a job at a time: the next night labels what this one has left."""
    going = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    if context.instance.get_runs(dg.RunsFilter(job_name=job, statuses=going), limit=1):
        return dg.SkipReason(f"a run of {job} is still going")
    return dg.RunRequest(tags={DATE: context.scheduled_execution_time.strftime("%Y-%m-%d")})


@dg.schedule(job=nightly, cron_schedule=NIGHTLY)
def every_night(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    return unless_running(context, nightly.name)


@dg.schedule(job=weekly, cron_schedule=WEEKLY)
def every_week(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    return unless_running(context, weekly.name)


def from_environment() -> Cataloger:
    """Looked up when a run starts. Those that may be left out are looked up only where they are set."""
    required = ("checkout", "catalog", "output", "labelled", "storage", "model_name")
    optional = ("ray_address", "mlflow", "label_flags", "verify_flags", "train_flags", "compare_flags")
    names = {name: f"CATALOGER_{name.upper()}" for name in (*required, *optional)}
    if names["ray_address"] not in os.environ:
        names["ray_address"] = "RAY_ADDRESS"
    named = {
        name: dg.EnvVar(variable) for name, variable in names.items() if name in required or variable in os.environ
    }
    return Cataloger(**named)


defs = dg.Definitions(
    assets=[labels, challenger, champion],
    asset_checks=[whole],
    jobs=[nightly, weekly],
    schedules=[every_night, every_week],
    resources={"cataloger": from_environment()},
)
