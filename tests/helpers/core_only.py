"""What `pip install mtgen` alone brings, and programs that have nothing else."""

import configparser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def outside_of_the_core(*extras: str) -> set[str]:
    """Modules that are installed here, but not by `pip install mtgen` with these extras."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    asked = settings["options"]["install_requires"] + "".join(
        settings["options.extras_require"][extra] for extra in extras
    )
    names, core = [canonicalize_name(Requirement(line).name) for line in asked.split("\n") if line], set()
    while names:
        core.add(name := names.pop())
        needed = [Requirement(text) for text in metadata.requires(name) or []]
        new = {canonicalize_name(n.name) for n in needed if n.marker is None or n.marker.evaluate({"extra": ""})}
        names += [n for n in new - core if n not in names]
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not core & {canonicalize_name(owner) for owner in owners} and module not in ("mtgen", "_distutils_hack")
    }


def refusing(modules: set[str]) -> str:
    """The beginning of a program in which these modules are not installed."""
    return f"""
import sys
outside = set({sorted(modules)!r})
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in outside:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""
