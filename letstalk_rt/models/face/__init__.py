"""Faces: detection, landmarks, lips and how a driver moves."""
