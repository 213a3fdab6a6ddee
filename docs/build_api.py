"""Pages of everything in mtgen, from its docstrings: `make docs`, or `python docs/build_api.py FOLDER`."""

import os
import pkgutil
import sys
from pathlib import Path

import mtgen

APART = ("mtgen.__main__", "mtgen.cli.__main__", "mtgen.serving.generator", "mtgen.serving.predictor")
"""Run rather than imported: the commands' entry, and what MLflow runs as programs."""
MODULES = [found.name for found in pkgutil.walk_packages(mtgen.__path__, "mtgen.") if found.name not in APART]


def build(folder: Path) -> None:
    """Write a page for each module into `folder`."""
    os.environ["PDOC_ALLOW_EXEC"] = "1"  # some libraries ask the system who it is when they are imported
    import pdoc
    from pdoc.extract import walk_specs

    left_out = [f"!{name}" for name in APART]
    specs, reached = ["mtgen", *left_out], set(walk_specs(["mtgen", *left_out]))
    for name in MODULES:  # where a package has `__all__`, pdoc finds its modules by their names alone
        if name not in reached:
            specs.append(name)
            reached |= set(walk_specs([name, *left_out]))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*specs, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
