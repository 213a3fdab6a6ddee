"""Address of the MLflow store of a folder of runs."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from mtgen.errors import ConfigError


def store_uri(runs: str | Path, uri: str | None = None) -> str:
    """The store's address, with absolute paths: `uri`, else MLFLOW_TRACKING_URI, else SQLite in the folder of runs.

    Args:
        runs: folder of all runs.
        uri: `tracking.uri` of a configuration.

    Raises:
        ConfigError: `uri` holds a password, which would be written to disk with the configuration.
    """
    if uri and urlsplit(uri).password:
        raise ConfigError(
            "tracking.uri: holds a password, which every copy of this file would show; set MLFLOW_TRACKING_URI instead"
        )
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(runs).absolute()}/mlflow.db"
    scheme, _, path = uri.partition(":///")
    if scheme == "sqlite":
        return f"sqlite:///{Path(path).absolute()}"
    return uri if "://" in uri or uri == "databricks" else Path(uri.removeprefix("file:")).absolute().as_uri()
