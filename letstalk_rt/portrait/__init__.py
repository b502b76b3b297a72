"""Still portraits: reading, framing, compositing, matting, the library, the watermark."""
