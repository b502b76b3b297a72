"""Many workers behind HAProxy: the agent check, draining, and the proxy's configuration."""
