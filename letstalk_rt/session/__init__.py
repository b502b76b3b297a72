"""Live sessions: audio in, frames out, on one playout clock. Nothing here imports torch."""
