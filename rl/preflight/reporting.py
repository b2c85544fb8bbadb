"""Checks that W&B can be reached and has a login, if the recipe reports to it."""

from __future__ import annotations

import netrc
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from rl.preflight.finding import Finding, ok, problem
from rl.recipe import Recipe

_SECONDS = 5


def reports_to_wandb(recipe: Recipe) -> bool:
    """Whether `train.report_to` includes W&B."""
    names = recipe.train["report_to"]
    return bool({"wandb", "all"} & set([names] if isinstance(names, str) else names or []))


def wandb_finding(environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether a run of W&B can start: offline, or with a login at a server that answers."""
    mode = environment.get("WANDB_MODE", "online")
    if mode in ("offline", "disabled", "dryrun"):
        return ok(
            "W&B", f"WANDB_MODE={mode}: nothing is sent" + (" until wandb sync" if mode != "disabled" else "")
        )
    url = environment.get("WANDB_BASE_URL", "https://api.wandb.ai")
    server = urlsplit(url)
    offline = "set WANDB_MODE=offline and run wandb sync later"
    try:
        port = server.port or (80 if server.scheme == "http" else 443)
        socket.create_connection((server.hostname or "", port), timeout=_SECONDS).close()
    except OSError as error:
        return problem("W&B", f"'train.report_to' is wandb, but {url} cannot be reached ({error}); {offline}")
    if not _logged_in(environment, server.hostname or ""):
        return problem(
            "W&B",
            f"'train.report_to' is wandb, but there is no login for {url}; run wandb login, or {offline}",
        )
    return ok("W&B", f"{url} answers, and there is a login")


def _logged_in(environment: Mapping[str, str], host: str) -> bool:
    """Whether there is a key in WANDB_API_KEY or in the netrc file, where `wandb login` puts it."""
    if environment.get("WANDB_API_KEY"):
        return True
    file = Path(environment.get("NETRC") or Path.home() / ".netrc")
    try:
        return host in netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
