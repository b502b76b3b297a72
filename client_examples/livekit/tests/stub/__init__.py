"""A LiveKit server in miniature, for tests on one machine.

Signalling with the protobufs of livekit-protocol, media and data channels by aiortc. It has what
the tests use: rooms, published tracks, data packets, agent workers and their dispatch; one layer of
each video, no reconnection and no encryption of frames.
"""
