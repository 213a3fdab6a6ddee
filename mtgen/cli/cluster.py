"""Commands that run training on a cluster: Ray jobs, Slurm scripts, Kubernetes manifests, Ray nodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mtgen.cli.common import (
    TRAIN_PANEL,
    ConfigFile,
    Json,
    Overrides,
    WorkerError,
    app,
    console,
    load_config,
    say,
    write_json,
)
from mtgen.cli.renames import RenamingGroup
from mtgen.errors import Unreachable, UserError
from mtgen.utils.shell import shell_command

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="address of the cluster's Jobs API, which is its dashboard's",
    ),
]
DEFAULT_JOBS_ADDRESS = "http://127.0.0.1:8265"
JobName = Annotated[str, typer.Argument(metavar="JOB", help="name of the job (mtgen jobs list)")]

jobs = typer.Typer(cls=RenamingGroup, no_args_is_help=True, help="List, follow and stop the jobs of a Ray cluster.")
app.add_typer(jobs, name="jobs", rich_help_panel=TRAIN_PANEL)


def _connect(address: str) -> Any:
    from mtgen.launchers.ray_jobs import connect

    return connect(address, say)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _say_end(job: Any) -> None:
    """Print how a job ended.

    Raises:
        WorkerError: it failed.
    """
    if job.status == "FAILED":
        raise WorkerError(f"job {job.id} failed; see its output: mtgen jobs logs {job.id}", job.exit_status or 5)
    say(f"job {job.id}: {job.status.lower()}; run folder: {job.folder}")


@app.command(rich_help_panel=TRAIN_PANEL)
def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = DEFAULT_JOBS_ADDRESS,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="stream the job's output until it ends, or return immediately")
    ] = True,
    json_file: Json = None,
) -> None:
    """Train a run as a job of a Ray cluster.

    Sends mtgen's code and the configuration; data and runs have to be where the cluster's nodes find them.

    Example: `mtgen submit configs/digits-32.yaml --address http://127.0.0.1:8265 workers=8`

    Ctrl-C stops the streaming, not the job. The same command resumes the run. For a cluster that requires a token, set
    RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the token.
    """
    from mtgen.launchers.ray_jobs import follow, get_job
    from mtgen.launchers.ray_jobs import submit as hand_over

    client = _connect(address)
    job = hand_over(client, config, overrides or [])
    say(f"job {job.id}: submitted; run folder: {job.folder}")
    hint = f"mtgen jobs logs {job.id} --follow; mtgen jobs stop {job.id}"
    try:
        if wait:
            job = follow(client, job.id, _write)
    except KeyboardInterrupt:
        job = get_job(client, job.id)
        say(f"the job continues: {hint}")
    else:
        if not wait:
            say(f"next: {hint}")
    write_json(json_file, {"job": job.id, "run": job.run, "folder": job.folder, "status": job.status})
    if job.status in ("SUCCEEDED", "FAILED", "STOPPED"):
        _say_end(job)


@jobs.command("list")
def list_jobs(address: Address = DEFAULT_JOBS_ADDRESS, json_file: Json = None) -> None:
    """List the jobs that were submitted to the cluster, newest first.

    Example: `mtgen jobs list --address http://127.0.0.1:8265`
    """
    from rich.table import Table

    from mtgen.launchers.ray_jobs import list_submitted

    found = list_submitted(_connect(address))
    shown = Table("job", "run", "status", "started (UTC)")
    for job in found:
        shown.add_row(job.id, job.run, job.status.lower(), f"{job.began:%Y-%m-%d %H:%M:%S}" if job.began else "-")
    console.print(shown)
    write_json(
        json_file, [{"job": job.id, "run": job.run, "folder": job.folder, "status": job.status} for job in found]
    )


@jobs.command("logs")
def show_logs(
    job: JobName,
    address: Address = DEFAULT_JOBS_ADDRESS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep streaming until the job ends")] = False,
) -> None:
    """Print the output of a job so far.

    Example: `mtgen jobs logs digits-32-4f2a19 --follow`
    """
    from mtgen.launchers import ray_jobs as cluster

    client = _connect(address)
    if follow:
        _say_end(cluster.follow(client, cluster.get_job(client, job).id, _write))
    else:
        _write(cluster.logs(client, job))


@jobs.command("stop")
def stop_job(
    job: JobName,
    address: Address = DEFAULT_JOBS_ADDRESS,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="wait until the job has stopped, or return immediately")
    ] = True,
) -> None:
    """Stop a job after a checkpoint. Submit the run again to resume it.

    Example: `mtgen jobs stop digits-32-4f2a19`
    """
    from mtgen.launchers.ray_jobs import stop

    ended = stop(_connect(address), job, wait)
    say(f"job {ended.id}: {ended.status.lower() if wait else 'stopping'}; run folder: {ended.folder}")


@app.command(rich_help_panel=TRAIN_PANEL)
def slurm(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="number of nodes")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="GPUs per node, each with one worker; 0: train on CPUs")
    ] = 0,
    workers_per_node: Annotated[
        int | None, typer.Option(min=1, help="workers per node; default: one per GPU, or one on CPUs")
    ] = None,
    time: Annotated[
        str, typer.Option(help="Slurm time limit per allocation; the run is requeued until it finishes")
    ] = "4:00:00",
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="CPUs per node; default: all, and exclusive nodes")
    ] = None,
    warn: Annotated[int, typer.Option(min=10, help="seconds before the time limit at which to checkpoint")] = 180,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="further option for sbatch, such as --sbatch=--partition=gpu; repeatable"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="script to write; default: NAME.sbatch in this folder"),
    ] = None,
) -> None:
    """Write a Slurm script that trains a run on several nodes.

    The job requeues itself until the run is finished.

    Example: `mtgen slurm configs/digits-32.yaml --nodes 2 --gpus-per-node 4 --time 8:00:00`, then
    `sbatch digits-32.sbatch`
    """
    from mtgen.launchers.ray_jobs import pack_config
    from mtgen.launchers.slurm import SlurmResources, script

    each = workers_per_node or max(gpus_per_node, 1)
    request = SlurmResources(nodes, gpus_per_node, each, time, cpus_per_node, warn, tuple(sbatch or ()))
    given = [word for word in overrides or [] if not word.startswith("workers=")]
    _, settings = pack_config(config, [*given, f"workers={nodes * each}"])
    path = out or Path(f"{settings.name}.sbatch")
    if path.resolve() == config.resolve():
        raise UserError(f"--out {path}: is the configuration itself; choose another file for the script")
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)  # for the job's output: Slurm makes no folders
        path.write_text(script(settings, config, given, request), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be written ({error.strerror}); choose another file"
        ) from None
    say(
        f"{path}: {nodes} nodes, {settings.max_workers} workers; "
        f"next: {shell_command('sbatch', path)}; squeue; scancel JOB also writes a checkpoint"
    )


@app.command(rich_help_panel=TRAIN_PANEL)
def kube(
    config: ConfigFile,
    overrides: Overrides = None,
    pods: Annotated[int, typer.Option(min=1, help="number of pods that train")] = 1,
    gpus_per_pod: Annotated[
        int, typer.Option(min=0, help="GPUs per pod, each with one worker; 0: train on CPUs, one worker per pod")
    ] = 1,
    cpus_per_pod: Annotated[int, typer.Option(min=1, help="CPUs per pod")] = 8,
    memory: Annotated[str, typer.Option(help="memory per pod; what lies in /dev/shm counts")] = "32Gi",
    spares: Annotated[
        int, typer.Option(min=0, help="further pods without work, which workers take when one is lost")
    ] = 0,
    image: Annotated[str | None, typer.Option(help="image; default: that of launch/Dockerfile")] = None,
    data_claim: Annotated[str, typer.Option(help="persistent volume claim of the data, at /data")] = "mtgen-data",
    runs_claim: Annotated[str, typer.Option(help="persistent volume claim of the runs, at /runs")] = "mtgen-runs",
    secret: Annotated[str, typer.Option(help="secret with the cluster's token")] = "mtgen-ray-token",  # noqa: S107
    queue: Annotated[str | None, typer.Option(help="Kueue's queue that admits the job; default: it starts now")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="manifest to write; default: NAME.rayjob.yaml in this folder"),
    ] = None,
) -> None:
    """Write a Kubernetes manifest that trains a run on several pods.

    It is a RayJob of KubeRay, with the configuration in a ConfigMap.

    KubeRay starts the run again when pods are lost; it resumes from its newest checkpoint.

    Example: `mtgen kube digits-32 data.path=/data/digits --pods 2`, then `kubectl apply -f digits-32.rayjob.yaml`
    """
    from mtgen.launchers.kube import KubeResources, kube_config, manifest

    request = KubeResources(
        pods, gpus_per_pod, cpus_per_pod, memory, spares, image, data_claim, runs_claim, secret, queue
    )
    given = [word for word in overrides or [] if not word.startswith("workers=")]
    settings = kube_config(config, given, request)
    path = out or Path(f"{settings.name}.rayjob.yaml")
    if path.resolve() == config.resolve():
        raise UserError(f"--out {path}: is the configuration itself; choose another file for the manifest")
    try:
        path.write_text(manifest(settings, request, str(path)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    say(
        f"{path}: {pods + spares} pods, {settings.max_workers} workers; "
        f"next: {shell_command('kubectl', 'apply', '--dry-run=server', '-f', path)}"
    )


@app.command("slurm-job", hidden=True)
def slurm_job(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train within a Slurm allocation; the script of `mtgen slurm` runs this on its first node."""
    from mtgen.launchers.slurm import SlurmWarnings, allocation, requeue

    warnings = SlurmWarnings()  # before the slow imports, so that no signal is lost meanwhile
    from mtgen.launchers.driver import finished_message, train_with_progress

    settings = load_config(config, overrides)
    unreachable: Unreachable | None = None
    with allocation(settings, say):
        outcome = None
        if not warnings.heard:
            try:
                outcome = train_with_progress(settings, console, say, asked=lambda: warnings.heard)
            except Unreachable as error:
                unreachable = error
    if unreachable is not None:
        say(str(unreachable))
        if not requeue(say):
            raise unreachable
        return
    if outcome is not None and outcome.status == "finished":
        say(finished_message(settings, outcome))
        return
    say("warned before training started" if outcome is None else f"{outcome.status} at {outcome.images:,} images")
    if outcome is None or outcome.status == "stopped":
        requeue(say)


cluster = typer.Typer(cls=RenamingGroup, no_args_is_help=True, help="Start a Ray cluster: head and worker nodes.")
app.add_typer(cluster, name="cluster", rich_help_panel=TRAIN_PANEL)
Cpus = Annotated[int | None, typer.Option(min=0, help="CPUs of this node to use; default: all")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of this node to use; default: all")]


@cluster.command()
def head(
    span: Annotated[
        bool, typer.Option("--span", help="let other nodes join; default: listen on loopback only")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port that other nodes join")] = 6379,
    dashboard_port: Annotated[
        int, typer.Option(min=1, max=65535, help="port of the dashboard and the Jobs API, on loopback")
    ] = 8265,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """Start the head node in the foreground; Ctrl-C stops it. Clients and nodes need its token.

    Example: `mtgen cluster head`, and in another terminal `mtgen submit configs/digits-32.yaml`
    """
    from mtgen.launchers.ray_node import command, own_address, token_file

    say(f"the token: {token_file() or 'RAY_AUTH_TOKEN'}; submit runs with --address http://127.0.0.1:{dashboard_port}")
    if span:
        say(
            f"other nodes, with the same token: mtgen cluster join {own_address()}:{port}. "
            "Traffic is not encrypted: launch/README.md"
        )
    _run_in_foreground(command(None, port, span, cpus, gpus, dashboard_port), span)


@cluster.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="address of the head node")],
    cpus: Cpus = None,
    gpus: Gpus = None,
    grace: Annotated[int, typer.Option(min=0, help="seconds that runs have for a checkpoint at SIGTERM")] = 30,
) -> None:
    """Join this system to a cluster in the foreground; Ctrl-C removes it again.

    SIGTERM, with which systems announce a preemption, gives runs notice: they write a checkpoint before the node
    leaves, and its loss does not count as a failure.

    Example: `mtgen cluster join 10.0.0.1:6379`
    """
    from mtgen.launchers.preemption import give_notice
    from mtgen.launchers.ray_node import command, token_file

    def leave(process: int, environment: dict[str, str]) -> float:
        if not give_notice(process, address, grace, environment):
            say("the cluster has not taken the notice: this node leaves at once")
            return 0.0
        say(f"this node leaves in {grace} s; runs write a checkpoint")
        return float(grace)

    say(f"the token: {token_file() or 'RAY_AUTH_TOKEN'}")
    _run_in_foreground(command(address, 0, True, cpus, gpus, None), span=True, leave=leave)


def _run_in_foreground(
    words: list[str], span: bool, leave: Callable[[int, dict[str, str]], float] | None = None
) -> None:
    """Run a node until it ends; Ray gives up on starts of over 30 s, as on a busy system, so try three times."""
    from mtgen.launchers.ray_node import run_node

    for _ in range(3):
        if run_node(words, span, leave=leave) == 0:
            break
    else:
        raise WorkerError("Ray exited; see its output above", 1)
