"""The networks and their presets; state is passed in, never kept in a module."""
