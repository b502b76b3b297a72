"""The embedded model in a room."""

import pytest
from support.agents import tone
from support.stage import local_stage

from letstalk_rt import Avatar
from letstalk_rt.avatars import list_avatars


async def test_the_embedded_model_speaks(house):
    with Avatar.load(list_avatars()["mira"], size=256) as avatar:
        async with local_stage(house, avatar) as stage:
            await stage.agent.say("", audio=tone(1.0)).wait_for_playout()
            await stage.user.until_quiet()
            event, _ = stage.playback.finished[-1]
            assert event.playback_position == pytest.approx(1.0, abs=0.04)
            assert stage.user.loud_since(0) > 0.8
            height, width, _ = avatar.portrait.canvas.shape
            assert {(s.width, s.height) for s in stage.user.sights} == {(width, height)}
