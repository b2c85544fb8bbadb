"""TokenRig: mesh encoder, Qwen3 language model, log-probabilities under the grammar."""
