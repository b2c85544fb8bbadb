"""TokenRig: mesh encoder, Qwen3 language model, and log-probabilities under the grammar."""
