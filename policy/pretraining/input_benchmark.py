"""`python -m policy.pretraining.input_benchmark RECIPE`: examples per second of a recipe's input, by part."""
