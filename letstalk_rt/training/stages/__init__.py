"""One module for each training stage."""
