"""The logger of this plugin."""

import logging

logger = logging.getLogger("livekit.plugins.letstalk")
