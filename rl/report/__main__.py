"""`python -m rl.report OUTPUT_DIR [OUTPUT_DIR ...]`: one HTML page about a run, or several side by side."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data.command_line import RunFailedError
from data.mesh import MeshError
from data.typed_recipe import RecipeError
from rl.library_settings import importing

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=.*", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0: done, 1: failed, 2: an argument that cannot be used, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m rl.report",
        description=(__doc__ or "").partition(": ")[2],
        epilog="Works on a run that has not finished. Rigs that it rolls out are kept in OUTPUT_DIR/report/.",
    )
    parser.add_argument("runs", nargs="+", metavar="OUTPUT_DIR", help="output_dir of a run of rl.launch")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        type=Path,
        help="default: report.html in OUTPUT_DIR; of several runs, compared.html in the first",
    )
    parser.usage = "python -m rl.report OUTPUT_DIR [OUTPUT_DIR ...] [--out FILE.html] [key.sub=value ...]"
    arguments = parser.parse_intermixed_args(argv)
    folders = [Path(text) for text in arguments.runs if Path(text).is_dir() or not _OVERRIDE.fullmatch(text)]
    overrides = [text for text in arguments.runs if not Path(text).is_dir() and _OVERRIDE.fullmatch(text)]
    try:
        if not folders:
            raise RecipeError("no run is named; give the output_dir of a run")
        with importing():  # takes seconds: not for --help
            from rl.report.write import write_report

        path = write_report(folders, arguments.out, overrides)
    except (RecipeError, MeshError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except (RunFailedError, OSError) as problem:
        print(f"failed: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
