"""What tests need besides Python packages; under CI, which provides it, a test without it fails and is not skipped."""

import os
import shutil

import pytest

PREVENTABLE = "(preventable: "
"""In the reason of a skip: `.ci/run` can see to it that this test runs."""


def preventable(missing: str, remedy: str) -> str:
    """The reason of a skip that the remedy prevents."""
    return f"{missing} {PREVENTABLE}{remedy})"


def needs(program: str, package: str, found: str | None = None) -> pytest.MarkDecorator:
    """Skip a test where a program is missing that one of Debian's packages holds.

    Args:
        found: where the program is, for one that is not on PATH.
    """
    missing = found is None and shutil.which(program) is None
    return pytest.mark.skipif(missing, reason=preventable(f"no {program} here", f"apt-get install {package}"))


def fails_in_ci(reason: str) -> bool:
    """Whether a test that was skipped for this reason has failed: under CI, where it could have run."""
    return PREVENTABLE in reason and os.environ.get("CI", "").lower() not in ("", "0", "false")
