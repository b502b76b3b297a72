"""Where speech comes from: a microphone, a file, anything that gives PCM."""
