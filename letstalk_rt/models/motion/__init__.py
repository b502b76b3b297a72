"""The motion of a face as one code a frame, and the denoiser that generates it from speech."""
