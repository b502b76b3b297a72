"""Sinks: where the frames of a session go."""
