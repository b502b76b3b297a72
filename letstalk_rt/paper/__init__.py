"""LetsTalk as published, whole: model, training, rendering, evaluation; see README.md."""

FAITHFUL = "faithful-"
"""What the names of these presets begin with on the command line, to tell them from streaming."""
