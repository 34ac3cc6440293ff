"""Files that describe clusters: TOML, and what clusters and other simulators say about themselves.

An importer is a module with two functions: ``sniff(path, head) -> bool`` looks at the first bytes, ``read(path,
**options) -> dict`` returns the tables that a TOML file of the same cluster would hold. An exporter is a module with
``write(cluster, path)``. Others register theirs in the entry-point groups ``moesim.topology_formats`` and
``moesim.topology_exports``.
Nothing else of moesim knows a foreign format: the tables are checked, built, edited and written like every topology.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.base.registry import Registry

if TYPE_CHECKING:
    from moesim.cluster.cluster import Cluster

_HEAD = 65_536  # bytes that a format may look at to recognise itself


class TopologyFormat(Protocol):
    """A module that reads one kind of file."""

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the file looks like this format; never raises."""
        ...

    @property
    def read(self) -> Any:
        """``read(path, **options) -> dict`` of tables; raises FormatError."""
        ...


TOPOLOGY_FORMATS: Final[Registry[TopologyFormat]] = Registry(
    "topology format",
    {
        "toml": "moesim.cluster.formats.toml",
        "nccl-xml": "moesim.cluster.formats.nccl_xml",
        "nvidia-smi": "moesim.cluster.formats.nvidia_smi",
        "ibnetdiscover": "moesim.cluster.formats.ibnetdiscover",
        "iblinkinfo": "moesim.cluster.formats.iblinkinfo",
        "slurm": "moesim.cluster.formats.slurm",
        "topograph": "moesim.cluster.formats.topograph",
        "simai": "moesim.cluster.formats.simai",
        "astra-sim": "moesim.cluster.formats.astra_sim",
        "fusion": "moesim.cluster.formats.fusion",
    },
    "moesim.topology_formats",
)


class TopologyExport(Protocol):
    """A module that writes one kind of file."""

    @property
    def write(self) -> Any:
        """``write(cluster, path)``; raises InputError where the file could not tell the cluster."""
        ...


TOPOLOGY_EXPORTS: Final[Registry[TopologyExport]] = Registry(
    "topology export",
    {
        "toml": "moesim.cluster.formats.toml",
        "sglang": "moesim.cluster.formats.sglang",
        "astra-sim": "moesim.cluster.formats.astra_sim",
    },
    "moesim.topology_exports",
)


def read_cluster(source: str | Path, format: str | None = None, **options: Any) -> Cluster:
    """Read a topology of any format, or the preset of that name; see :meth:`Cluster.read`."""
    from moesim.cluster.build import build
    from moesim.cluster.formats.toml import locate
    from moesim.cluster.schema import check

    path = locate(source, Path())
    tables = read_tables(path, format, **options)
    try:
        return build(check(tables, str(path)))
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(path, "", str(error)) from None


def read_tables(path: Path, format: str | None = None, **options: Any) -> dict[str, Any]:
    """Return the tables of a file of any format, or of a folder with one fabric dump and files of its nodes.

    Parameters
    ----------
    format
        Name of the format; found from the content where it is None.
    options
        Options of that format, such as ``like="h200-4x8-rail"``: the preset whose constants hold where the file is
        silent.

    Raises
    ------
    FormatError
        If no format knows the file, or the file is not what its format says.
    UnknownName
        If there is no such format or option.
    """
    name = format or recognise(path)
    if name is None:
        known = ", ".join(TOPOLOGY_FORMATS.names())
        raise FormatError(path, "", f"no topology format knows this file (tried {known}); name its format if it is one")
    read = TOPOLOGY_FORMATS.get(name).read
    known_options = list(inspect.signature(read).parameters)[1:]
    for option in options:
        if not known_options:
            raise InputError(
                f"{path}: a topology of format {name} says all itself, it takes no {option}=; leave it out"
            )
        if option not in known_options:
            raise UnknownName(f"option of topology format {name}", option, known_options)
    try:
        tables: dict[str, Any] = read(path, **options)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(path, "", str(error)) from None
    return tables


def recognise(path: Path) -> str | None:
    """Return the name of the format that a file or a folder looks like.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    if path.is_dir():
        return "fusion"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return next((name for name in TOPOLOGY_FORMATS.names() if TOPOLOGY_FORMATS.get(name).sniff(path, head)), None)
