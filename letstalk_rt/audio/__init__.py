"""Audio before the model: resampling, hops, segments, clock drift, voice activity, files."""
