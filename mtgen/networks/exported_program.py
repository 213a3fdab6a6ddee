"""Loading of third-party networks from files of `torch.export` (`.pt2`), as data.

`torch.export.load` evaluates expressions and unpickles parts of a file, so it runs code that the file may hold. Here a
file is first reduced to what a network needs, and rejected if it has anything else: operators of torch's ATen, shapes
made of numbers and symbols, and tensors as raw bytes.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.export import ExportedProgram

from mtgen.errors import ConfigError, last_line

MODEL_FILE = "models/model.json"
"""The graph within the archive."""
PICKLED_INPUTS_FILE = "data/sample_inputs/model.pt"
"""The example inputs, which are pickled and which no network needs; replaced by an empty list."""
RAW_FOLDERS = ("data/weights", "data/constants", ".data")
"""Folders of the archive with tensors as raw bytes, and what describes them."""
OTHER_FILES = ("archive_format", "archive_version", "byteorder", "version")
"""Files of the archive that hold one word."""
OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_\w+|_operator\.(getitem|add|sub|mul|floordiv|neg|eq|ge|le)"
)
"""What a node of the graph may call."""
EXPRESSION = re.compile(
    r"(?:Mul|Add|Pow|Max|Min|FloorDiv|Mod|Symbol|Integer|True|positive|nonnegative|integer|'?\b[suz]\d+'?|-?\d+|"
    r"[(),=+*/ -])*"
)
"""What a size may consist of."""
NAME = re.compile(r"[\w.]*")
"""A name of a tensor or node."""
NAME_KEYS = ("name", "graph_name", "user_input_name", "parameter_name", "buffer_name", "tensor_name")


class _Rejected(Exception):
    """A file that holds something else than a network's graph and tensors; says what."""


def read_exported_program(content: bytes, named: str) -> ExportedProgram:
    """Load a program on the CPU from the content of a file that `torch.export.save` wrote.

    Args:
        named: how the user named the file, as `key=path`; for messages.

    Raises:
        ConfigError: it is not such a file, or holds something that could run code.
    """
    try:
        return torch.export.load(io.BytesIO(_reduced(content)))
    except _Rejected as error:
        raise ConfigError(
            f"{named}: holds {error}, which could run code, and is not loaded; "
            "write it with torch.export.save from a network of torch's own operators"
        ) from None
    except Exception as error:  # torch raises anything for a damaged file
        raise ConfigError(
            f"{named}: not a network of torch.export ({last_line(error)[:200]}); write it again with this version of "
            f"torch, {torch.__version__}"
        ) from error


def _inner(name: str) -> str:
    """A file's name within the archive without the archive's own folder."""
    return PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix()


def _reduced(content: bytes) -> bytes:
    """The archive without what is not needed.

    Raises:
        _Rejected: it holds something that could run code.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as reduced:
        for name in archive.namelist():
            inner, data = _inner(name), archive.read(name)
            if inner == MODEL_FILE:
                data = json.dumps(_checked_graph(json.loads(data))).encode()
            elif inner == PICKLED_INPUTS_FILE:
                data = _empty_inputs()
            elif PurePosixPath(inner).name.endswith("_config.json"):
                _check_payloads(json.loads(data))
            elif not (PurePosixPath(inner).parent.as_posix() in RAW_FOLDERS or inner in OTHER_FILES):
                raise _Rejected(f"the file {inner}")
            reduced.writestr(name, data)
    return out.getvalue()


def _empty_inputs() -> bytes:
    out = io.BytesIO()
    torch.save(((), {}), out)
    return out.getvalue()


def _check_payloads(config: dict[str, Any]) -> None:
    for name, payload in config.get("config", {}).items():
        if payload["use_pickle"] or not NAME.fullmatch(payload["path_name"]):
            raise _Rejected(f"{name} as a pickle")
        if not payload["path_name"].startswith(("weight_", "tensor_")):
            raise _Rejected(f"the object {name}")


def _checked_graph(model: dict[str, Any]) -> dict[str, Any]:
    """The graph without guards and metadata, both of which hold code or text about code."""
    model["guards_code"] = []
    for key, value in _items(model):
        if key == "metadata" and isinstance(value, dict):
            value.clear()
        elif key == "target" and not OPERATOR.fullmatch(str(value)):
            raise _Rejected(f"a call of {str(value)[:100]}")
        elif key == "expr_str" and not EXPRESSION.fullmatch(str(value)):
            raise _Rejected(f"the expression {str(value)[:100]}")
        elif key in NAME_KEYS and isinstance(value, str) and not NAME.fullmatch(value):
            raise _Rejected(f"the name {value[:100]}")
    for expression in model.get("range_constraints", {}):
        if not EXPRESSION.fullmatch(expression):
            raise _Rejected(f"the expression {expression[:100]}")
    return model


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested dictionaries and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str):
            yield key, inner
        if isinstance(inner, dict | list):
            yield from _items(inner)
