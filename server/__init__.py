"""The letstalk_rt server: one page, one model, several people talking to their avatars.

Rooms: `app` (routes), `studio` (the model and the portraits), `sessions` (who is connected),
`rtc` (offer and answer), `tracks` (engine <-> aiortc), `playout` (the one clock),
`protocol` (data-channel messages), `problems` (errors as documents).
"""
