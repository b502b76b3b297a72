"""Finding faces, and controlling head motion, gaze and eyelids."""
