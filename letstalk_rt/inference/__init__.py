"""The pipeline that runs one step of the model for a batch of sessions, and its thread."""
