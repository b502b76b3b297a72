"""Audio encoders: audio to audio tokens, by log-mel and causal convolutions or wav2vec 2.0."""
