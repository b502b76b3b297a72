"""Portraits: reading images, framing, compositing, mattes, the avatar library, the watermark."""
