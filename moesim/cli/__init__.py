"""The command line: parse, call, print.

stdout carries data, stderr everything else. Exit codes: 0 done, 1 an error of the user in one line, 2 usage,
3 proven infeasible, 130 interrupted. Verbs import what they need when they run, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from moesim.base.errors import MoesimError
from moesim.cli.flags import as_options

__all__ = ["main"]

_INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Parameters
    ----------
    argv
        Arguments; default those of the process.
    """
    from moesim.cli.app import app

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # reports say by which command they were made
        app(args=arguments, prog_name="moesim", obj=arguments)
    except MoesimError as error:
        _fail(as_options(str(error)), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer ends so without a word
            sys.stderr.write("moesim: interrupted\n")
        raise
    except OSError as error:
        # a broken file system, not a bug of ours; everything else keeps its traceback
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)


def _fail(message: str, code: int) -> None:
    line = " ".join(part.strip() for part in message.splitlines())
    sys.stderr.write(f"moesim: {line}\n")
    raise SystemExit(code)
