"""Debian packages as corpus sources: fixed versions, downloaded and unpacked without root."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from moesim.base.errors import MoesimError


@dataclass(frozen=True)
class Package:
    """One Debian 12 package at a fixed version, with the licence of the text taken from it."""

    name: str
    version: str
    licence: str


PACKAGES: tuple[Package, ...] = (
    Package("metamath-databases", "0.0.0~20210101.git55fe226-2", "CC0-1.0 (set.mm)"),
    Package("golang-1.19-src", "1.19.8-2", "BSD-3-Clause"),
    Package("dict-wn", "1:3.0-37", "WordNet-3.0"),
    Package("bible-kjv", "4.38", "program only: prints the text, none of it is kept"),
    Package("bible-kjv-text", "4.38", "public domain (King James Version)"),
    Package("libreoffice-help-de", "4:7.4.7-1+deb12u14", "MPL-2.0"),
    Package("libreoffice-help-ru", "4:7.4.7-1+deb12u14", "MPL-2.0"),
    Package("libreoffice-help-ja", "4:7.4.7-1+deb12u14", "MPL-2.0"),
    Package("libreoffice-help-zh-cn", "4:7.4.7-1+deb12u14", "MPL-2.0"),
)


def fetch(package: Package, downloads: Path) -> Path:
    """Download one package file, unless it is already there.

    Parameters
    ----------
    package
        What to fetch.
    downloads
        Folder for the package files; created if absent.

    Returns
    -------
    Path of the `.deb` file.

    Raises
    ------
    MoesimError
        `apt-get` is missing, or its archive no longer offers this version.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.name}_{package.version.replace(':', '%3a')}_*.deb"
    if found := sorted(downloads.glob(pattern)):
        return found[0]
    if shutil.which("apt-get") is None:
        raise MoesimError(
            f"{package.name}: `apt-get` not found; run on Debian 12, or put {pattern} into {downloads} by hand"
        )
    done = subprocess.run(
        ["apt-get", "download", f"{package.name}={package.version}"],
        cwd=downloads, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = sorted(downloads.glob(pattern))
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MoesimError(
            f"{package.name}: version {package.version} could not be downloaded ({reason}); "
            f"run `apt-get update`, or put {pattern} into {downloads} by hand"
        )
    return found[0]


def unpack(deb: Path, folder: Path) -> Path:
    """Unpack the files of a package into `folder` (not installing it) and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MoesimError(f"{deb}: dpkg-deb could not unpack it ({done.stderr.strip()}); delete it and fetch it again")
    return folder


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_all(work: Path) -> tuple[dict[str, Path], list[dict[str, str | int]]]:
    """Fetch and unpack every package of the corpus.

    Returns
    -------
    Folder of each package by name, and one provenance record a package (name, version, licence, bytes, sha256).
    """
    folders: dict[str, Path] = {}
    records: list[dict[str, str | int]] = []
    for package in PACKAGES:
        deb = fetch(package, work / "packages")
        folders[package.name] = unpack(deb, work / "unpacked" / package.name)
        records.append(
            {
                "package": package.name,
                "version": package.version,
                "licence": package.licence,
                "bytes": deb.stat().st_size,
                "sha256": sha256_of(deb),
            }
        )
    return folders, records
