"""Audio to audio tokens: log-mel and causal convolutions, or wav2vec 2.0."""
