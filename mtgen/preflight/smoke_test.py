"""The smoke test: runs every part of mtgen on this system in small, and names a fix for what fails."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mtgen.config import Config, validate
from mtgen.config.hardware import unused_gpus
from mtgen.errors import ConfigError, UserError
from mtgen.preflight.smoke_speed import Unavailable, speed_checks

PASSED, FAILED, UNAVAILABLE = "passed", "failed", "not available"
RESULT_COLORS = {PASSED: "green", FAILED: "bold red", UNAVAILABLE: "yellow"}
SMOKE_BATCH_SIZE, SMOKE_STEPS = 16, 50
SMOKE_IMAGES = SMOKE_BATCH_SIZE * SMOKE_STEPS
DATA, DALI, RAY, MLFLOW, TRAINING = "data set", "DALI", "ray", "mlflow", "training fp32, ZeRO-0"
LIBRARIES = {  # name -> module to import, distribution that has its version, fix
    "torch": ("torch", "torch", "make setup"),
    "deepspeed": ("deepspeed", "deepspeed", "make setup"),
    RAY: ("ray", "ray", "make setup; until then only workers=0 trains"),
    MLFLOW: ("mlflow", "mlflow", "make setup; until then the journal keeps all metrics, and the next run sends them"),
    DALI: (
        "nvidia.dali",
        "nvidia-dali-cuda120",
        "pip install -e '.[cuda12]' (or cuda13); without it images cannot be decoded, so training is not possible",
    ),
}
MAX_RESUME_DIFFERENCE = 0.1
"""Largest difference of a resumed run on a GPU, relative to the resumed half's change: its sums have no fixed order."""


SaveRows = Callable[[list[dict[str, Any]]], None]
"""Saves the rows of the table."""


@dataclass(frozen=True)
class SmokeResult:
    """A row of the table."""

    check: str
    result: str
    seconds: float
    detail: str


class Checks:
    """Runs checks one after another; an error in one is a row of the table, and the next one runs.

    Args:
        console: shows the running check and, at the end, the table.
        minutes: time after which no further check starts; `None`: all run.
        save: gets all rows after each check, so that a check that hangs costs no other's result.
    """

    def __init__(self, console: Console, minutes: float | None = None, save: SaveRows = lambda _: None) -> None:
        self.console = console
        self.minutes = minutes
        self.save = save
        self.rows = list[SmokeResult]()
        self._begin = time.monotonic()

    def check(self, name: str, work: Callable[[], str], needs: Sequence[str] = ()) -> None:
        """Run `work`, which returns what it saw, unless a check in `needs` has not passed, or the time is over."""
        begin = time.monotonic()
        with self.console.status(f"{name} ..."):
            reason = self._reason_against(needs)
            result, detail = (UNAVAILABLE, reason) if reason else _attempt(work)
        self.rows.append(SmokeResult(name, result, round(time.monotonic() - begin, 2), detail))
        self.save(self.as_dicts())

    def _reason_against(self, needs: Sequence[str]) -> str:
        if self.minutes is not None and time.monotonic() - self._begin > 60 * self.minutes:
            return f"left out: {self.minutes:g} minutes are over (--minutes)"
        missing = [row for row in self.rows if row.check in needs and row.result != PASSED]
        return f"needs {missing[0].check} ({missing[0].result})" if missing else ""

    def as_dicts(self) -> list[dict[str, Any]]:
        """All checks so far: `check`, `result`, `seconds` and `detail` of each."""
        return [asdict(row) for row in self.rows]

    def table(self) -> Table:
        """All checks so far."""
        table = Table("check", "result", "seconds", "what it saw", title="mtgen smoke test", title_justify="left")
        for row in self.rows:
            table.add_row(
                row.check,
                f"[{RESULT_COLORS[row.result]}]{row.result}[/]",
                f"{row.seconds:.1f}",
                row.detail.replace("[", r"\["),
            )
        return table


def _attempt(work: Callable[[], str]) -> tuple[str, str]:
    try:
        return PASSED, work()
    except Unavailable as reason:
        return UNAVAILABLE, str(reason)
    except UserError as error:
        return FAILED, str(error)
    except Exception as error:  # noqa: BLE001 - the table shows the errors of libraries
        return FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _library(name: str) -> str:
    module, distribution, remedy = LIBRARIES[name]
    try:
        importlib.import_module(module)
    except Exception as error:  # a library that is built for another system may raise anything
        raise Unavailable(
            f"{module} cannot be imported ({' '.join(str(error).split())[:200]}); fix: {remedy}"
        ) from error
    names = [distribution, distribution.replace("120", "130")]  # DALI has one wheel per CUDA version
    for candidate in names:
        try:
            return f"{candidate} {importlib.metadata.version(candidate)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{module}, unknown version"


def _system(device: str) -> str:
    import psutil
    import torch

    here = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    if device == "cpu":
        return f"{here}; CPU: fp32, bf16"
    properties = torch.cuda.get_device_properties(0)
    kinds = ", ".join(["fp32", *(["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []), "fp16"])
    return f"{here}; {properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}: {kinds}"


def chosen_device(device: str) -> str:
    """The device, "cpu" or "cuda", that `device` ("auto", "cpu", "cuda") selects on this system.

    Raises:
        ConfigError: it is none of these, or the system does not have it.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: unknown; possible: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = unused_gpus() or (
            f"torch is built for CUDA {built} but finds no driver; see nvidia-smi"
            if built
            else "torch is built for CPUs only"
        )
        raise ConfigError(f"--device cuda: torch sees no CUDA device here ({why}); possible: --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


class Trainings:
    """The checks that train, each as a separate run in one folder.

    Args:
        folder: for the data set and the runs.
        device: "cpu" or "cuda".
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.device = device
        self.data = folder / "data"
        self.runs = folder / "runs"

    def config(self, name: str, **changes: Any) -> Config:
        """A run of 50 steps with 16 images of 16x16 pixels, several tasks, and a checkpoint half-way."""
        values: dict[str, Any] = {
            "name": name,
            "runs": str(self.runs),
            "workers": 0,
            "device": self.device,
            "precision": "fp32",
            "batch_size": SMOKE_BATCH_SIZE,
            "resolution": 16,
            "data": {"path": str(self.data)},
            "generator": {"widths": [16, 16, 8], "latent": 16},
            "discriminator": {"widths": [16, 16, 8], "decoder": 8, "embedding": 16},
            "tasks": {"generation": {}, "classification": {}, "segmentation": {}, "reconstruction": {}},
            "train": {"images": SMOKE_IMAGES, "log_every": 5 * SMOKE_BATCH_SIZE, "warmup": 0, "max_restarts": 0},
            "checkpoint": {"every": SMOKE_IMAGES // 2},
            "evaluate": {"every": SMOKE_IMAGES},
            "tracking": {"uri": f"sqlite:///{self.runs}/mlflow.db"},
        }
        return validate({**values, **changes})

    def make_data(self) -> str:
        """Make a small data set and decode every sample."""
        from mtgen.data.index_store import index_dataset
        from mtgen.shards.make import make
        from mtgen.shards.validate import validate as validate_shards

        card = make("shapes", self.data, overwrite=self.data.exists(), resolution=16, train=160, test=40)
        index_dataset(self.data)  # keeps the index out of the cache
        report = validate_shards(self.data)
        _expect(
            not report.problems,
            f"{len(report.problems)} samples of a new data set are damaged: {report.text()}",
        )
        return f"160 + 40 samples, {len(card.classes)} classes, all decoded by `mtgen shards validate`"

    def decode(self) -> str:
        """Compare DALI with Pillow on the training images, which need no resizing."""
        import numpy as np
        import torch
        from PIL import Image

        from mtgen.data.index import open_index
        from mtgen.data.loader import iterate_split
        from mtgen.data.transform_spec import TransformSpec

        index = open_index(self.data, "train")
        difference, samples = 0.0, 0
        for batch in iterate_split(index, TransformSpec(16, "rgb", device=self.device), batch_size=SMOKE_BATCH_SIZE):
            for position, image in zip(batch.position.tolist(), batch.image.cpu(), strict=True):
                path = self.folder / "sample.png"
                path.write_bytes(index.read(position, "image"))
                with Image.open(path) as picture:
                    expected = (
                        torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5
                        - 1
                    )
                difference, samples = max(difference, (image - expected).abs().max().item()), samples + 1
        _expect(
            difference <= 2 / 127.5,
            f"images differ from Pillow's by up to {difference * 127.5:.0f} of 255; try another DALI build",
        )
        return f"{samples} images differ from Pillow's by at most {difference * 127.5:.1f} of 255"

    def train(self, precision: str, stage: int) -> str:
        """Train 50 steps; all losses must be finite."""
        if self.device == "cpu" and precision == "fp16":
            raise Unavailable("fp16 needs a GPU; on a CPU use precision=bf16")
        name = _name(precision, stage)
        return self._trained(self.config(name, precision=precision, zero_stage=stage))

    def _launch(self, config: Config, resume: bool = False) -> None:
        """Train to the end; Ctrl-C, with which a training stops after a checkpoint, ends the whole test."""
        from mtgen.launchers.driver import launch

        # one CPU per worker is enough, and several threads of one crawl where other programs run as well
        cpus = max(config.max_workers, 1)
        outcome = launch(config, watch=lambda *_: None, say=lambda _: None, require_checkpoint=resume, cpus=cpus)
        if outcome.status == "stopped":
            raise KeyboardInterrupt
        _expect(
            outcome.status == "finished",
            f"training {outcome.status} at {outcome.images} of {SMOKE_IMAGES} images: {outcome.message}",
        )

    def _trained(self, config: Config) -> str:
        from mtgen.models.loading import describe
        from mtgen.tracking.journal import read_journal

        shutil.rmtree(config.folder, ignore_errors=True)  # of an earlier smoke test in the same folder
        self._launch(config)
        rows = [row.values for row in read_journal(config.folder)]
        broken = sorted(
            {name for values in rows for name in values if name.startswith("loss/") and name.endswith("/nonfinite")}
        )
        skipped = max(describe(config.folder)["nonfinite_steps"].values())
        # fp16 starts with a large loss scale, and skips steps until it is small enough
        _expect(
            not broken and skipped <= (SMOKE_STEPS // 2 if config.precision == "fp16" else 0),
            f"not finite: {broken}; {skipped:.0f} steps skipped",
        )
        losses = [values["loss/d"] for values in rows if "loss/d" in values]
        speed = max(values.get("speed/images_per_second", 0.0) for values in rows)
        return f"{SMOKE_STEPS} steps, discriminator loss {losses[0]:.2f} -> {losses[-1]:.2f}, {speed:.0f} images/s"

    def resume(self, precision: str, stage: int) -> str:
        """Resume from the checkpoint after 25 steps: the parameters after 50 must be the same."""
        from mtgen.models.loading import describe

        whole = self.runs / _name(precision, stage)
        config = self.config(f"{whole.name}-resumed", precision=precision, zero_stage=stage)
        shutil.rmtree(config.folder, ignore_errors=True)
        half = min((whole / "checkpoints").iterdir()).name
        shutil.copytree(whole / "checkpoints" / half, config.folder / "checkpoints" / half)
        self._launch(config, resume=True)
        wanted, got = describe(whole), describe(config.folder)
        if all(wanted[key] == got[key] for key in ("digest", "digest_averaged")):
            return f"25 + 25 steps equal {SMOKE_STEPS} steps bit for bit ({got['digest'][:12]})"
        difference = _relative_difference(whole, config.folder, half)
        _expect(
            self.device == "cuda",
            f"25 + 25 steps differ from {SMOKE_STEPS} steps by {difference:.1%} of the change in the second half; "
            "on a CPU they must be equal",
        )
        _expect(
            difference < MAX_RESUME_DIFFERENCE,
            f"25 + 25 steps differ from {SMOKE_STEPS} steps by {difference:.1%} of the change in the second half, "
            "more than GPU rounding explains",
        )
        return (
            f"25 + 25 steps differ from {SMOKE_STEPS} steps by {difference:.2%} of their change: a GPU's sums have no "
            "fixed order"
        )

    def ray(self) -> str:
        """Train on a worker that Ray places."""
        return f"1 worker placed by Ray: {self._trained(self.config('ray', workers=1))}"

    def two_workers(self, precision: str) -> str:
        """Train on two GPUs: NCCL, a device per worker, ZeRO's partitions."""
        import torch

        if self.device == "cpu" or torch.cuda.device_count() < 2:
            found = 0 if self.device == "cpu" else torch.cuda.device_count()
            raise Unavailable(f"needs two GPUs, and there are {found} (--device {self.device})")
        config = self.config(f"two-workers-{precision}", workers=2, precision=precision, zero_stage=1)
        return f"2 workers on 2 GPUs: {self._trained(config)}"

    def sample(self) -> str:
        """Generate a grid from the newest checkpoint."""
        from PIL import Image

        from mtgen.inference import PromptRequest, sample_run

        path = self.folder / "grid.png"
        sample_run(self.runs / _name("fp32", 0), PromptRequest(), SMOKE_BATCH_SIZE, 0, out=path, device=self.device)
        with Image.open(path) as picture:
            lowest, highest = picture.convert("L").getextrema()
            _expect(lowest != highest, f"{path} has a single color: the generator does not work")
            return f"{SMOKE_BATCH_SIZE} images with masks in a grid of {picture.width}x{picture.height} pixels"

    def predict(self) -> str:
        """Predict class and mask of an image file."""
        from mtgen.data.index import open_index
        from mtgen.inference import predict_run

        path = self.folder / "image.png"
        path.write_bytes(open_index(self.data, "test").read(0, "image"))
        rows: list[dict[str, Any]] = []
        problems: list[str] = []
        out = self.folder / "predictions"
        predict_run(
            self.runs / _name("fp32", 0), [path], out, self.device, on_result=rows.append, on_error=problems.append
        )
        _expect(not problems and len(rows) == 1, f"{path.name} got no prediction: {'; '.join(problems)}")
        _expect(
            0 < rows[0]["probability"] <= 1 and Path(rows[0]["overlay"]).is_file(),
            f"invalid prediction for {path.name}: {rows[0]}",
        )
        return f"{rows[0]['class']} ({rows[0]['probability']:.2f}) and a mask, after {SMOKE_STEPS} steps"

    def tracking(self) -> str:
        """Check the run and its curves in MLflow's SQLite store."""
        from mlflow import MlflowClient

        from mtgen.tracking.mlflow_sender import SenderState

        config = self.config(_name("fp32", 0))
        client, run_id = MlflowClient(config.tracking.uri), SenderState.load(config.folder).run_id
        remedy = f"all metrics are in {config.folder}/metrics.jsonl"
        _expect(bool(run_id), f"{config.tracking.uri} has no run {config.name!r}; {remedy}")
        run, points = client.get_run(run_id), client.get_metric_history(run_id, "loss/d")
        _expect(
            len(points) == SMOKE_STEPS // 5,
            f"the curve loss/d has {len(points)} points instead of {SMOKE_STEPS // 5}; {remedy}",
        )
        _expect(run.info.status == "FINISHED", f"the run is {run.info.status} instead of FINISHED; {remedy}")
        return f"run {config.name!r} finished, {len(run.data.metrics)} curves, {len(points)} points per loss"


def _name(precision: str, stage: int) -> str:
    return f"{precision}-zero{stage}"


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _relative_difference(whole: Path, resumed: Path, half: str) -> float:
    """Distance between two runs' final parameters, relative to the first run's change since checkpoint `half`."""
    from mtgen.checkpointing.checkpoint import Checkpoint, verify
    from mtgen.models.loading import newest

    def distance(a: Checkpoint, b: Checkpoint) -> float:
        squared = 0.0
        for network in ("generator", "discriminator"):
            others = b.tensors(network)
            squared += sum(
                (tensor - others[name]).square().sum().item()
                for name, tensor in a.tensors(network).items()
                if name.startswith("parameter/")
            )
        return squared**0.5

    end = newest(whole)
    return distance(end, newest(resumed)) / max(distance(end, verify(whole / "checkpoints" / half)), 1e-12)


def smoke_test(
    device: str, out: Path | None, console: Console, minutes: float | None = None, save: SaveRows = lambda _: None
) -> list[dict[str, Any]]:
    """Test this system: train in each precision and ZeRO stage, resume, sample, predict, track; print a table.

    Args:
        device: "auto", "cpu" or "cuda".
        out: folder for the test's files; `None`: a temporary one.
        minutes: time after which no further check starts; `None`: all run.
        save: gets the checks so far after each of them, as they are returned.

    Returns:
        For each check: `check`, `result` ("passed", "failed", "not available"), `seconds` and `detail`.

    Raises:
        ConfigError: the system does not have the device, or the folder cannot be created.
    """
    device = chosen_device(device)
    os.environ.setdefault("DS_ACCELERATOR", device)  # DeepSpeed reads it at its import
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads only slow down networks this small
    with tempfile.TemporaryDirectory(prefix="mtgen-smoke-") as temporary:
        folder = Path(temporary) if out is None else out.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be created ({error.strerror}); choose another folder") from None
        checks = Checks(console, minutes, save)
        try:
            _run_all(checks, Trainings(folder, device))
        finally:  # also if it is interrupted
            console.print(checks.table())
    if out is not None:
        console.print(f"the test's files are in {folder}")
    return checks.as_dicts()


def _run_all(checks: Checks, trainings: Trainings) -> None:
    checks.check("system", lambda: _system(trainings.device))
    for library in LIBRARIES:
        checks.check(library, lambda library=library: _library(library))  # type: ignore[misc]
    stack = ("torch", "deepspeed", DALI, DATA)
    checks.check(DATA, trainings.make_data)
    checks.check("decoding", trainings.decode, needs=(DALI, DATA))
    for precision, stage in (("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 0), ("fp16", 0)):
        kind = f"{precision}, ZeRO-{stage}"
        checks.check(f"training {kind}", partial(trainings.train, precision, stage), needs=stack)
        checks.check(f"resuming {kind}", partial(trainings.resume, precision, stage), needs=(f"training {kind}",))
    checks.check("sampling", trainings.sample, needs=(TRAINING,))
    checks.check("prediction", trainings.predict, needs=(TRAINING,))
    checks.check("tracking", trainings.tracking, needs=(TRAINING, MLFLOW))
    checks.check("training on Ray", trainings.ray, needs=(*stack, RAY))
    for precision in ("bf16", "fp16"):
        two = partial(trainings.two_workers, precision)
        checks.check(f"training on two GPUs, {precision}", two, needs=(*stack, RAY))
    for name, work in speed_checks(trainings.config("speed"), trainings.device):
        checks.check(name, work, needs=("torch",))
