"""One step of the model, batched over sessions, and the thread that runs it."""
