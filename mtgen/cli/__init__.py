"""Commands: parse, call, print; no logic. Heavy imports wait until a command needs them, so that `--help` is quick."""

import io
import sys

from mtgen.cli import preflight, train, inspect_run  # isort: skip - the order of the panels in `mtgen --help`
from mtgen.cli import configs, weights, cluster, plan, shards, inference  # isort: skip
from mtgen.cli.common import app
from mtgen.errors import UserError
from mtgen.utils import glibc_malloc, openmp

__all__ = [
    "app",
    "cluster",
    "configs",
    "inference",
    "inspect_run",
    "main",
    "plan",
    "preflight",
    "shards",
    "train",
    "weights",
]


def main() -> None:
    """Entry point: an error of the user's is one message and an exit status, never a traceback."""
    glibc_malloc.tune_this_process()
    openmp.choose_wait_policy()
    for stream in (sys.stdout, sys.stderr):  # names of classes and files may have letters that its encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(error.status)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "mtgen":
            raise
        extra = "explore" if error.name in ("starlette", "uvicorn") else "train"
        print(
            f"error: {error.name} is not installed, which this command needs: pip install 'mtgen[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
