"""Build the API reference from the docstrings: `make docs`, or `python docs/build_api.py FOLDER`."""

import os
import pkgutil
import sys
from pathlib import Path

import mtgen

ENTRY_POINTS = ("mtgen.__main__", "mtgen.cli.__main__", "mtgen.serving.generator", "mtgen.serving.predictor")
"""Modules that are run, not imported: the command line, and the programs that MLflow serves."""
MODULES = [found.name for found in pkgutil.walk_packages(mtgen.__path__, "mtgen.") if found.name not in ENTRY_POINTS]


def build(folder: Path) -> None:
    """Write one page per module to `folder`."""
    os.environ["PDOC_ALLOW_EXEC"] = "1"  # some libraries run a program when they are imported
    import pdoc
    from pdoc.extract import walk_specs

    excluded = [f"!{name}" for name in ENTRY_POINTS]
    specs = ["mtgen", *excluded]
    found = set(walk_specs(specs))
    for name in MODULES:  # pdoc skips modules that are missing from their package's `__all__`
        if name not in found:
            specs.append(name)
            found |= set(walk_specs([name, *excluded]))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*specs, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
