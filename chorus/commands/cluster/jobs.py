"""``chorus submit`` and ``chorus jobs``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from chorus.cluster.runtime.job_command import ADDRESS_VARIABLES, DEFAULT_ADDRESS
from chorus.console.format import duration
from chorus.console.options import Json

if TYPE_CHECKING:
    from chorus.cluster.runtime.job_command import SubmittedJob
    from chorus.cluster.runtime.ray_jobs import Jobs
    from chorus.cluster.state.progress import RunState
    from chorus.console.progress import Reached

err = Console(stderr=True)
Address = Annotated[
    str,
    typer.Option(
        envvar=list(ADDRESS_VARIABLES),
        help="Ray's dashboard, as http://HEAD:8265; on a machine of the cluster also HEAD:6379 or `auto`.",
    ),
]
Follow = Annotated[bool, typer.Option(help="Show what the job says until it ends, and end as it does.")]
Name = Annotated[str, typer.Argument(help="The job, as `chorus jobs list` names it.")]
# Ended, and the same command may find something to do.
_GOES_ON = ("failures", "cut short", "stopped")


def submit(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="A command that works on Ray, with its arguments.")
    ],
    address: Address = DEFAULT_ADDRESS,
    follow: Follow = True,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Local paths are on a file system that every node mounts at the same place."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a command of Chorus on a Ray cluster: `chorus submit [options] predict ...`, with predict's own options.

    Only the command is sent: images, ensemble and output are URLs that the cluster can reach, a built-in ensemble
    is given by its name, and the software is that of the cluster's image. Ctrl-C leaves the job running. Exit code:
    that of the command (0: all done, 1: finished with failures, 2: refused, 3: interrupted, `chorus jobs resume`
    continues); 0 with --no-follow, 130 after Ctrl-C.

    **Examples**

    `chorus submit --address http://head:8265 predict gs://bucket/screen.ome.zarr -e nuclei-fluo -o gs://bucket/out`

    `chorus submit --no-follow train s3://bucket/images --labels s3://bucket/masks --out s3://bucket/nuclei`

    `chorus submit --shared predict /data/plate.ome.zarr -e /data/nuclei -o /data/results`
    """
    from chorus.cluster.runtime.ray_jobs import Jobs
    from chorus.commands.cluster.submit import read_command

    command = read_command(context, words, shared=shared)
    jobs = Jobs(address)
    _begin(jobs, jobs.submit(command), follow=follow, as_json=as_json)


def list_jobs(address: Address = DEFAULT_ADDRESS, as_json: Json = False) -> None:
    """List the cluster's jobs, the latest first; they are lost when its head node ends.

    **Example**

    `chorus jobs list --address http://head:8265`
    """
    from chorus.cluster.runtime.ray_jobs import Jobs

    jobs = Jobs(address).submitted()
    if as_json:
        print(json.dumps([asdict(job) for job in jobs]))
        return
    table = Table(title=f"{len(jobs)} jobs", title_justify="left")
    for name in ("job", "state", "command", "started (UTC)", "took", "output"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        table.add_row(job.name, job.state, job.command, _time(job.started), _took(job), job.out)
    Console().print(table)


def status(
    name: Annotated[str | None, typer.Argument(help="The job; by default the latest.")] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: Json = False,
) -> None:
    """Show a job: its state, progress and speed, what is recorded, and what to do next.

    What is recorded is read from the output, if this machine can read it.

    **Example**

    `chorus jobs status screen-1`
    """
    from chorus.cluster.runtime.ray_jobs import Jobs
    from chorus.console.progress import last_progress

    jobs = Jobs(address)
    job = jobs.job(name) if name else jobs.latest()
    log = jobs.log(job.name)
    reached = last_progress(log) if job.state == "running" else None
    state, why = _run_state(job)
    last_line = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    if as_json:
        content = asdict(job) | {"progress": reached and reached._asdict(), "run": state and asdict(state)}
        print(json.dumps(content | {"unreadable": why, "said": last_line}))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for title, value in (_facts(job) | _course(job, reached, state, why)).items():
        table.add_row(title, value)
    Console().print(table)
    out = Console()
    out.print(f"said     {last_line}", highlight=False, soft_wrap=True, markup=False)
    out.print(_next(jobs, job), highlight=False, soft_wrap=True, markup=False)


def logs(
    name: Annotated[str | None, typer.Argument(help="The job; by default the latest.")] = None,
    address: Address = DEFAULT_ADDRESS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends, and end as it does.")] = False,
) -> None:
    """Print the log of a job.

    **Example**

    `chorus jobs logs --follow screen-1`
    """
    from chorus.cluster.runtime.ray_jobs import Jobs

    jobs = Jobs(address)
    job = jobs.job(name) if name else jobs.latest()
    if follow:
        raise typer.Exit(_follow(jobs, job, Console(soft_wrap=True)).result)
    print(jobs.log(job.name), end="")


def stop(name: Name, address: Address = DEFAULT_ADDRESS, as_json: Json = False) -> None:
    """Stop a job cleanly: recorded work stays, work in progress is dropped, and the output is unlocked.

    Waits until it has ended; after 90 seconds Ray kills it, which loses the work in progress.

    **Example**

    `chorus jobs stop screen-1`
    """
    from chorus.cluster.runtime.ray_jobs import Jobs

    jobs = Jobs(address)
    _end(jobs, jobs.stop(name), as_json=as_json)


def resume(name: Name, address: Address = DEFAULT_ADDRESS, follow: Follow = True, as_json: Json = False) -> None:
    """Resume a job that was stopped or interrupted, as a new job; recorded work is not repeated.

    **Example**

    `chorus jobs resume screen-1`
    """
    from chorus.cluster.runtime.ray_jobs import Jobs

    jobs = Jobs(address)
    _begin(jobs, jobs.resume(name), follow=follow, as_json=as_json)


def _begin(jobs: Jobs, job: SubmittedJob, *, follow: bool, as_json: bool) -> None:
    """Report that a job was started, and follow it if asked to."""
    _say(f"job      {job.name}  ({job.command}, into {job.out})")
    if follow:
        job = _follow(jobs, job, Console(stderr=True, soft_wrap=True))
        _end(jobs, job, as_json=as_json)
        raise typer.Exit(job.result)
    if as_json:
        print(json.dumps(asdict(job)))
    _say(_next(jobs, job))


def _follow(jobs: Jobs, job: SubmittedJob, console: Console) -> SubmittedJob:
    """Print the log of a job until it ends; return its state then."""
    try:
        return jobs.follow(job.name, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt as error:
        _say(f"\n{job.name} goes on without you; {_next(jobs, job)}")
        raise typer.Exit(130) from error


def _end(jobs: Jobs, job: SubmittedJob, *, as_json: bool) -> None:
    """Report how a job ended."""
    if as_json:
        print(json.dumps(asdict(job)))
    _say(f"{job.name}: {job.state}" + (f" ({job.message})" if job.exit_code is None and job.message else ""))
    if job.state in _GOES_ON:
        _say(_next(jobs, job))


def _next(jobs: Jobs, job: SubmittedJob) -> str:
    """Return what can be done with a job in its present state."""
    if job.alive:
        return (
            f"look at it with {jobs.call('status', job.name)}, follow it with {jobs.call('logs --follow', job.name)}, "
            f"stop it with {jobs.call('stop', job.name)}"
        )
    if job.state in _GOES_ON:
        return f"go on with {jobs.call('resume', job.name)}"
    return f"read all of it with {jobs.call('logs', job.name)}"


def _run_state(job: SubmittedJob) -> tuple[RunState | None, str]:
    """Return the recorded state of a job's run, or why this machine cannot read it."""
    from chorus.cluster.state.progress import run_state
    from chorus.pipeline.errors import ChorusError

    if job.command not in ("predict", "calibrate"):
        return None, ""
    try:
        return run_state(job.out, count=not job.alive), ""
    except ChorusError as error:
        return None, str(error)


def _facts(job: SubmittedJob) -> dict[str, str]:
    facts = {"job": job.name, "state": f"{job.state}, {_took(job)}" if job.started else job.state}
    facts |= {"started": f"{_time(job.started)} UTC", "command": job.command, "output": job.out}
    return facts | ({"ensemble": job.ensemble} if job.ensemble else {})


def _course(job: SubmittedJob, reached: Reached | None, state: RunState | None, why: str) -> dict[str, str]:
    """Return the progress of the job and of the whole run."""
    course: dict[str, str] = {}
    if reached is not None:
        course["progress"] = f"{reached.ended} of {reached.total} {reached.units} that were open, {reached.rates}"
    if state is None:
        return course | ({"recorded": f"cannot be seen from here: {why}"} if why else {})
    regions, images = state.regions_done, state.images_done
    if regions is None and reached is not None and reached.units == "regions":
        regions = state.regions - (reached.total - reached.ended)
    parts = [] if regions is None else [f"{regions} of {state.regions} regions"]
    parts += [f"{state.images} images planned" if images is None else f"{images} of {state.images} images"]
    parts += [f"{state.failed} failed"] if state.failed else []
    return course | {"recorded": ", ".join(parts)}


def _took(job: SubmittedJob) -> str:
    end = job.ended if job.ended is not None else datetime.now(UTC).timestamp()
    return duration(max(0.0, end - job.started)) if job.started is not None else ""


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _say(text: str) -> None:
    err.print(text, highlight=False, soft_wrap=True, markup=False)
