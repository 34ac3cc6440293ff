"""`python -m moesim.moe.corpus --out DIR`: fetch, clean, split and pack the corpus of the bundled model."""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moesim.base.errors import MoesimError
from moesim.base.files import write_text
from moesim.moe.corpus import clean
from moesim.moe.corpus.fetch import fetch_all, sha256_of
from moesim.moe.corpus.pack import DOMAINS, PARTS, SHARES, Document, gather, split, write_corpus

CAP_BYTES = 6_000_000

# One character of the script that a translated line must contain (Unicode blocks).
SCRIPTS: dict[str, str | None] = {
    "german": None,
    "russian": r"[\u0400-\u04ff]",
    "japanese": r"[\u3040-\u30ff\u4e00-\u9fff]",
    "chinese": r"[\u4e00-\u9fff]",
}
HELP_LANGUAGES = {"german": "de", "russian": "ru", "japanese": "ja", "chinese": "zh-cn"}
FOLDERS = HELP_LANGUAGES | {"chinese": "zh-CN"}


def units_of(domain: str, folders: dict[str, Path]) -> list[str]:
    """Cleaned units of one domain, from the unpacked packages."""
    if domain == "math":
        path = folders["metamath-databases"] / "usr/share/metamath/databases/set.mm"
        return list(gather(clean.metamath(path.read_text("ascii"))))
    if domain == "code":
        source = folders["golang-1.19-src"] / "usr/share/go-1.19/src"
        paths = sorted(path for path in source.rglob("*.go") if _is_plain_go(path.relative_to(source)))
        texts = (clean.go_file(path.read_text("utf-8", errors="ignore")) for path in paths)
        return [text for text in texts if text is not None and len(text) < 100_000]
    if domain == "lexicon":
        path = folders["dict-wn"] / "usr/share/dictd/wn.dict.dz"
        return list(gather(clean.wordnet(gzip.decompress(path.read_bytes()).decode("utf-8")), joint="\n"))
    if domain == "narrative":
        return list(clean.bible(_print_bible(folders)))
    language = HELP_LANGUAGES[domain]
    root = folders[f"libreoffice-help-{language}"] / "usr/share/libreoffice/help" / FOLDERS[domain] / "text"
    pages = (clean.help_page(path.read_text("utf-8")) for path in sorted(root.rglob("*.html")))
    return list(clean.help_pages(pages, script=SCRIPTS[domain]))


def _is_plain_go(path: Path) -> bool:
    # vendor/ holds other projects under other licences; testdata/ is often deliberately broken code
    return not path.name.endswith("_test.go") and not {"vendor", "testdata"} & set(path.parts)


def _print_bible(folders: dict[str, Path]) -> str:
    # the text package is compressed in a format of its own; its program reads it in place, uninstalled
    program = folders["bible-kjv"] / "usr/bin/bible"
    data = folders["bible-kjv-text"] / "usr/lib"
    done = subprocess.run(
        [str(program.resolve()), "-f", "-p", str(data.resolve()), "gen1:1-rev22:21"],
        cwd=data, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0 or not done.stdout:
        raise MoesimError(f"{program}: printed nothing ({done.stderr.strip()}); it needs libreadline8")
    return done.stdout


def build(
    out: Path, *, cap_bytes: int = CAP_BYTES, seed: int = 0, shares: Mapping[str, float] = SHARES
) -> dict[str, object]:
    """Build `corpus.parquet` and `manifest.json` in `out` and return the manifest."""
    folders, packages = fetch_all(out)
    documents = list[Document]()
    for domain in DOMAINS:
        documents += split(domain, units_of(domain, folders), cap_bytes=cap_bytes, seed=seed, shares=shares)
        print(f"{domain}: {sum(d.domain == domain for d in documents)} documents", file=sys.stderr)
    path = out / "corpus.parquet"
    write_corpus(documents, path)
    sizes = {
        domain: {
            part: {
                "documents": sum(d.domain == domain and d.part == part for d in documents),
                "bytes": sum(len(d.text.encode()) for d in documents if d.domain == domain and d.part == part),
            }
            for part in PARTS
        }
        for domain in DOMAINS
    }
    manifest: dict[str, object] = {
        "seed": seed,
        "cap_bytes": cap_bytes,
        "shares": dict(shares),
        "sha256": sha256_of(path),
        "packages": packages,
        "domains": sizes,
    }
    write_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_shares(text: str) -> dict[str, float]:
    """Read the shares of the parts, separated by commas.

    Raises
    ------
    MoesimError
        If they are not four positive numbers that add up to 1.
    """
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != len(PARTS) or min(values) <= 0 or abs(sum(values) - 1) > 1e-6:
        raise MoesimError(f"--shares {text}: expected {len(PARTS)} positive numbers that add up to 1")
    return dict(zip(PARTS, values, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.corpus", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for packages, corpus.parquet and manifest.json")
    parser.add_argument("--cap-bytes", type=int, default=CAP_BYTES, help="most bytes of a domain (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shares",
        help=f"of the parts {', '.join(PARTS)} (default {','.join(str(SHARES[part]) for part in PARTS)})",
    )
    options = parser.parse_args(arguments)
    try:
        shares = SHARES if options.shares is None else read_shares(options.shares)
        manifest = build(options.out, cap_bytes=options.cap_bytes, seed=options.seed, shares=shares)
    except MoesimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(manifest["domains"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
