"""Sweeps without an account: W&B's sweep file, its search methods, the trials and their table."""
