"""Evaluation: faces, image quality, sync score, identity, long runs, and the report."""
