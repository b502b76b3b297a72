"""Training and evaluation of every part."""
