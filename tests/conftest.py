"""What every test runs with: one thread, no network, no telemetry."""

import os
import signal
from collections.abc import Iterator

import pytest

# Set before the libraries read them, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MPLBACKEND"] = "agg"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


@pytest.fixture
def stop_signal_handlers() -> Iterator[None]:
    """Restore the handlers of the stop signals: a stopped run ignores further ones until its process ends."""
    from data.stop_signals import STOP_SIGNALS

    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in tests started in the background
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
