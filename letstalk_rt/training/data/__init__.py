"""The data folder: clips, stills, audio features, augmentation."""
