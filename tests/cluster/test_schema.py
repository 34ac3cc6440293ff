"""The published JSON schema is current, and editors with it accept what moesim accepts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from moesim.cluster import Cluster
from moesim.cluster.formats import json_schema
from moesim.cluster.formats.toml import dumps
from moesim.cluster.presets import preset_folder, preset_names
from moesim.cluster.schema import Description

from .test_docs import EXAMPLES
from .test_formats import SAMPLES

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "topology.schema.json"


def problems(text: str) -> list[str]:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    schema = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    validator.check_schema(schema)
    return [error.message for error in validator(schema).iter_errors(tomllib.loads(text))]


def test_the_published_schema_is_current() -> None:
    hint = "run: python -m moesim.cluster.formats.json_schema docs/topology.schema.json"
    assert PUBLISHED.read_text(encoding="utf-8") == json_schema.dumps(), hint


def test_every_key_of_a_file_is_in_the_schema() -> None:
    keys = {field.alias or name for name, field in Description.model_fields.items()}
    assert set(json_schema.topology_schema()["properties"]) == keys | {"base"}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name: str) -> None:
    assert problems((preset_folder() / f"{name}.toml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text[:20])
def test_examples_are_valid(example: str) -> None:
    assert problems(example) == []


@pytest.mark.parametrize(
    "sample", ["ibnetdiscover-2x4.out", "slurm-block.conf", "nvidia-smi-pcie.txt", "rccl-mi300x.xml"]
)
def test_written_imports_are_valid(sample: str) -> None:
    tables: dict[str, Any] = Cluster.read(SAMPLES / sample).description.model_dump(
        by_alias=True, exclude_none=True, exclude_defaults=True
    )
    assert problems(dumps(tables)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = 2\nbase = 'h100-1x8'", "1 was expected"),
        ("schema = 1\nnodes = 4", "'gpu' is a required property"),
        ("schema = 1\nbase = 'h100-1x8'\nnode_count = 3", "'node_count' was unexpected"),
        ("schema = 1\nbase = 'h100-1x8'\n[tier.rail]\nbandwidth = '50 GBs'", "does not match"),
        ("schema = 1\nbase = 'h100-1x8'\n[tier.rail]\nbandwidth = 50", "is not of type 'string'"),
    ],
)
def test_editors_see_what_is_wrong(text: str, message: str) -> None:
    assert any(message in problem for problem in problems(text))
