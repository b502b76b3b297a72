"""LetsTalk as published: denoiser, fusion schemes, diffusion, checkpoints."""
