"""Training runs as child processes, for ablations and sweeps: their commands, signals, logs and records."""
