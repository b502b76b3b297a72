"""The model as published by LetsTalk: denoiser, fusion schemes, diffusion, checkpoints."""
