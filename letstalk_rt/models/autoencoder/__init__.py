"""Autoencoders, frames to latents and back: the reference-guided autoencoder and DC-AE."""
