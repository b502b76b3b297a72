"""Where the avatar's pictures and sound go."""
