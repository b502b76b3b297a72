"""LetsTalk as published, whole: model, training, rendering, evaluation; see README.md."""
