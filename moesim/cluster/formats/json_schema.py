"""The JSON schema of topology files, for editors: ``docs/topology.schema.json``.

``python -m moesim.cluster.formats.json_schema FILE`` writes it. A file that names a ``base`` may leave anything out,
so tables demand their keys only where there is none; what belongs together is checked on reading.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from moesim.cluster.schema import Description

ADDRESS = "https://json-schema.org/draft/2020-12/schema"


def topology_schema() -> dict[str, Any]:
    """Return the JSON schema of a topology file."""
    schema = _plain(Description.model_json_schema(by_alias=True))
    properties = {
        "base": {"type": "string", "description": "A preset, or a file beside this one, that this file builds on."},
        **schema["properties"],
    }
    # rows of lists are never inherited piece by piece; tables are
    tables = {
        name: {key: value for key, value in table.items() if key != "required" or name == "Link"}
        for name, table in schema["$defs"].items()
    }
    whole = {
        "required": ["gpu"],
        "properties": {"gpu": {"required": schema["$defs"]["Gpu"]["required"]}},
        "anyOf": [{"required": ["nodes"]}, {"required": ["node"]}],
    }
    return {
        "$schema": ADDRESS,
        "title": "moesim topology",
        "description": "A cluster for moesim: GPUs and what connects them.",
        "type": "object",
        "properties": properties,
        "required": ["schema"],
        "if": {"not": {"required": ["base"]}},
        "then": whole,
        "additionalProperties": False,
        "$defs": tables,
    }


def _plain(schema: Any) -> Any:
    """Return a schema without null, which TOML does not have, and without titles that repeat the keys."""
    if isinstance(schema, list):
        return [_plain(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _plain(value) for key, value in schema.items() if not (key == "default" and value is None)}
    if isinstance(out.get("title"), str):
        del out["title"]
    choices = out.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        left = [choice for choice in choices if choice != {"type": "null"}]
        del out["anyOf"]
        out |= left[0] if len(left) == 1 else {"anyOf": left}
    return out


def dumps() -> str:
    """Return the published text of the schema."""
    return json.dumps(topology_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from moesim.base.files import write_text

    write_text(sys.argv[1], dumps())
