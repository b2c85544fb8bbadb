"""The page of a run, `python -m rl.report OUTPUT_DIR`: curves, tables, histograms and a 3D viewer of rigs."""
