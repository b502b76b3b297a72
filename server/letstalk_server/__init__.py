"""The letstalk_rt server: pages, HTTP, WebSocket and WebRTC around one loaded model.

`main` is the command line, `app` the ASGI application. `http` has the endpoints, `webrtc` the
peer connections, `session` what both share, `protocol` the messages of WebSocket and data channel.
"""
