"""HTTP and WebSocket endpoints, pages, problem details."""
