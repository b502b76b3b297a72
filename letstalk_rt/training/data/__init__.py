"""Training data: clips, still portraits, audio features, augmentation."""
