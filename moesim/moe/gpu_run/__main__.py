"""`python -m moesim.moe.gpu_run --corpus DIR --out DIR --minutes N`: check, train, capture, profile, test, pack.

Made for a GPU machine without network that is lent for minutes: phases have budgets, a run that was stopped goes on
with the phase it was in, and what is to be kept lies in `--out`, in few files of bounded size.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moesim.base.errors import MoesimError
from moesim.moe.gpu_run.pack import unpack
from moesim.moe.gpu_run.phases import PHASES, Setting
from moesim.moe.gpu_run.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if every phase is done, 1 if one failed or had no time left."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.gpu_run", description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder with corpus.parquet, made by `python -m moesim.moe.corpus`")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is brought back, and nothing else")
    parser.add_argument(
        "--work", type=Path, default=Path("out/gpu-run"), help="folder of the run's state (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all phases (default %(default)s)")
    parser.add_argument("--phases", help=f"only these, separated by commas, of {', '.join(PHASES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--commit", help="commit of this source, where there is no git to ask")
    parser.add_argument("--dry-run", action="store_true", help="the same phases on a CPU with a tiny model")
    parser.add_argument("--unpack", type=Path, metavar="DIR", help="only unpack what was brought back in --out to DIR")
    options = parser.parse_args(arguments)
    try:
        if options.unpack is not None:
            for name in unpack(options.out, options.unpack):
                sys.stdout.write(f"{name}\n")
            return 0
        if options.corpus is None:
            parser.error("--corpus is needed")
        if options.commit:
            os.environ["MOESIM_COMMIT"] = options.commit
        setting = Setting(
            corpus=options.corpus, work=options.work, out=options.out,
            device="cpu" if options.dry_run else options.device, dry=options.dry_run,
        )  # fmt: skip
        chosen = tuple(options.phases.split(",")) if options.phases else tuple(PHASES)
        return 0 if run(setting, chosen, options.minutes) else 1
    except MoesimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
