"""What `inspect` does with a topology beside telling its facts: draw it, or write it in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moesim.base.errors import InputError
from moesim.base.files import write_text

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def write_topology(cluster: Cluster, output: Path, to: str | None) -> None:
    """Write a cluster as a drawing (``.html``), or in a named format.

    Raises
    ------
    InputError
        If neither the format nor the name of the file says what to write.
    UnknownName
        If there is no such format.
    """
    if to is not None or output.suffix == ".toml":
        cluster.write(output, to or "toml")
    elif output.suffix == ".html":
        from moesim.figures import topology

        write_text(output, topology(cluster).to_html(include_plotlyjs=True))
    else:
        from moesim.cluster.formats import TOPOLOGY_EXPORTS

        raise InputError(
            f"{output}: name it .html for a drawing or .toml for a description, "
            f"or choose a format with --to: {', '.join(TOPOLOGY_EXPORTS.names())}"
        )
