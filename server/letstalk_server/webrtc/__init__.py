"""WebRTC: peer connections, RTP, encoders, SDP, TURN."""
