"""`python -m rl.push OUTPUT_DIR ACCOUNT/NAME`: uploads a run's policy and its card to the Hugging Face Hub.

OUTPUT_DIR is a run's output_dir, of which policy/ is uploaded (policy_best/ with --best), or a policy
directory. The repository is created, private unless --public is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.command_line import USER_ERRORS, RunFailedError


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0: uploaded, 1: the Hub failed or is out of reach, 2: the user can fix it."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m rl.push", description=description.partition(": ")[2], epilog=epilog
    )
    parser.add_argument("place", metavar="OUTPUT_DIR", type=Path, help="a run's output_dir, or a policy")
    parser.add_argument("repo_id", metavar="ACCOUNT/NAME", help="the repository on the Hub")
    parser.add_argument("--best", action="store_true", help="policy_best/ instead of policy/")
    parser.add_argument("--revision", metavar="BRANCH", default="main", help="created if missing")
    parser.add_argument("--public", action="store_true", help="create a public repository, or accept one")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    options = parser.parse_intermixed_args(argv)
    try:
        from rl.hub import policy_to_push, push_policy  # a second: not for --help
        from rl.run_files import CARD_FILE

        folder = policy_to_push(options.place, options.best)
        if not (folder / CARD_FILE).is_file():
            print(f"note: {folder} has no model card ({CARD_FILE})", file=sys.stderr)
        done = push_policy(
            folder,
            options.repo_id,
            public=options.public,
            revision=options.revision,
            message=options.message,
        )
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailedError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    kind = "private" if done.private else "public"
    print(
        f"{done.repo_id} ({kind}), branch {done.revision}: {len(done.files)} files, {done.size / 1e6:.1f} MB"
    )
    if done.removed:
        print(f"removed weights of an earlier policy: {', '.join(done.removed)}")
    print(done.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
