"""What `letstalk eval` measures: faces, pictures, sync, identity, long runs, and the report."""
