"""Face detection, head motion and eyelids."""
