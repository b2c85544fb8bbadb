"""The matrix of runs of `python -m rl.ablate`: its recipe, its child processes, its tables and plots."""
