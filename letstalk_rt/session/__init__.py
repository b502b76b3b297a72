"""Live sessions: audio in, frames out, on one playout clock. No torch here."""
