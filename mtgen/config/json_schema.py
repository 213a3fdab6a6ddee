"""A JSON schema of configurations, for editors: completion, descriptions and errors while typing."""

from typing import Any

from mtgen.config.run import Config
from mtgen.config.section import CONDITIONS, TASKS

NUMBER_PATTERNS = {"integer": r"^[0-9_]+$", "number": r"^[0-9_.eE+-]+$"}
"""Numbers as mtgen reads them and YAML 1.2 does not: 160_000."""


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file: every key with description, range and default (JSON Schema 2020-12)."""
    schema = Config.model_json_schema()
    for key, registry in (("tasks", TASKS), ("conditions", CONDITIONS)):
        names = {}
        for name in registry:
            own = registry[name].Settings.model_json_schema(ref_template=f"#/$defs/{key}.{name}.{{model}}")
            schema["$defs"] |= {f"{key}.{name}.{model}": inner for model, inner in own.pop("$defs", {}).items()}
            names[name] = {
                **own,
                "title": name,
                "description": (registry[name].__doc__ or "").strip().partition("\n")[0],
            }
        section = schema["properties"][key]
        section.pop("default", None)
        schema["properties"][key] = {**section, "properties": names, "additionalProperties": False}
    _as_written(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _as_written(node: Any) -> None:
    """Accept what mtgen accepts: an empty section has its defaults, and numbers may have underscores."""
    if isinstance(node, dict):
        for part in node.values():
            _as_written(part)
        if node.get("type") == "object":
            node["type"] = ["object", "null"]
        elif node.get("type") in NUMBER_PATTERNS:
            node["pattern"] = NUMBER_PATTERNS[node["type"]]
            node["type"] = [node["type"], "string"]
    elif isinstance(node, list):
        for part in node:
            _as_written(part)
