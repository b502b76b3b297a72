"""The letstalk_rt server: a page, a model, several people talking to their avatars.

Rooms, from the outside in:

`main` (command line), `settings`, `app` (the application), `guard` (origins), `pages`
`api`, `webrtc`, `sockets` (what is asked by HTTP, WebRTC and WebSocket), `web` (what they share),
`openapi`, `problem_details` (errors as HTTP answers)
`errors` (what clients are told of), `auth`, `turn`, `limits`, `metrics`
`protocol` (what clients say), `events` (what they are told)
`sessions`, `session` (one avatar and its connections), `contract` (what they are to each other),
`connections` (who is there), `announcer` (what they are told), `lifetime` (time limits),
`avatar_runner` (the engine), `reporting` (what is shown, told to the engine and to clients),
`reception` (a connection's messages), `links` (a WebRTC connection), `speech` (who is heard),
`endings`, `sound`, `frames` (in messages)
`avatar_service` (the model and the portraits), `playout` (the one clock)
`transport` (what is needed of a WebRTC stack) and what implements it: `aiortc_transport`, `offers`,
`bitrates`, `feeds`, `encoders`, `sender`, `estimate`, `receiver`, `microphone`, `hardening`
"""
