"""Networks and their presets. State is passed in; modules hold weights only."""
