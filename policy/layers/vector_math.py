"""Makes MKL choose its vector functions on one thread: two threads at once could compute with the wrong ones.

The first call of any of them in a process (torch.sin, exp, log, tanh, …) writes the CPU's raw number to an
unguarded variable and then replaces it by the final one. With two threads, one may read the raw number and
take a kernel of half the precision, or of another CPU: the sines of one thread's share were off by 1.5e-4 in
about 2 of 100 processes. Importing this module makes that first call; whatever imports torch imports it.
docs/first_calls.py shows it in fresh processes.
"""

import torch


def initialise() -> None:
    """Call one of MKL's vector functions with one element, which torch computes on the calling thread."""
    torch.zeros(1).sin()


initialise()
