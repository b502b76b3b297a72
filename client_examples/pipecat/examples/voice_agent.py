"""A voice agent with a face: it listens, thinks, and answers as a talking avatar in the browser.

Pipecat's own VAD and turn model decide when you have finished, and let you interrupt. Recognition,
brain and voice come from one OpenAI-compatible address.

    python voice_agent.py --base-url http://localhost:8000/v1 --portrait mira
    python voice_agent.py     # OpenAI itself, with OPENAI_API_KEY

Then open http://localhost:7860/client and press Connect.
"""

import argparse
import asyncio
import os
from functools import cache
from pathlib import Path

from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import LLMRunFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.runner.types import SmallWebRTCRunnerArguments
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.turns.user_stop import TurnAnalyzerUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from letstalk_rt import Avatar
from letstalk_rt.avatars import list_avatars
from pipecat_letstalk import LetsTalkVideoService, output_params

INSTRUCTIONS = (
    "You are a friendly avatar in a video call. Your words are spoken, so answer in one or two "
    "short sentences, without lists, markup or emoji."
)
GREETING = "Greet the user in one short sentence."


@cache
def load_avatar(portrait: str, size: int) -> Avatar:
    """Load the avatar that all callers see: a default one by its name, or an image file."""
    return Avatar.load(list_avatars().get(portrait, Path(portrait)), size=size)


def turns() -> LLMUserAggregatorParams:
    """Let Pipecat's VAD begin a turn, and its turn model end it."""
    stop = TurnAnalyzerUserTurnStopStrategy(turn_analyzer=LocalSmartTurnAnalyzerV3())
    return LLMUserAggregatorParams(
        vad_analyzer=SileroVADAnalyzer(),
        user_turn_strategies=UserTurnStrategies(stop=[stop]),
    )


async def bot(runner_args: SmallWebRTCRunnerArguments) -> None:
    """Serve one caller; Pipecat's runner calls this for each."""
    options = runner_args.cli_args
    assert options is not None, "start this file by its own command"
    avatar = await asyncio.to_thread(load_avatar, options.portrait, options.size)
    transport = SmallWebRTCTransport(
        runner_args.webrtc_connection,
        TransportParams(audio_in_enabled=True, **output_params(avatar)),
    )
    server = {"base_url": options.base_url, "api_key": options.api_key}
    stt = OpenAISTTService(settings=OpenAISTTService.Settings(model=options.stt), **server)
    llm = OpenAILLMService(
        settings=OpenAILLMService.Settings(model=options.llm, system_instruction=INSTRUCTIONS),
        **server,
    )
    voice = OpenAITTSService.Settings(model=options.tts, voice=options.voice)
    tts = OpenAITTSService(settings=voice, **server)
    face = LetsTalkVideoService(avatar=avatar)

    context = LLMContext()
    user, assistant = LLMContextAggregatorPair(context, user_params=turns())
    stages = [transport.input(), stt, user, llm, tts, face, transport.output(), assistant]
    worker = PipelineWorker(Pipeline(stages), params=PipelineParams(enable_metrics=True))

    @transport.event_handler("on_client_connected")
    async def greet(_transport: object, _client: object) -> None:
        context.add_message({"role": "user", "content": GREETING})
        await worker.queue_frame(LLMRunFrame())

    @transport.event_handler("on_client_disconnected")
    async def hang_up(_transport: object, _client: object) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def command_line() -> argparse.ArgumentParser:
    """Return the parser of this file's options; the runner adds its own."""
    parser = argparse.ArgumentParser(description="A voice agent with a talking face.")
    parser.add_argument("--portrait", default="mira", help="name of a default avatar, or an image")
    parser.add_argument("--size", type=int, default=512, help="longer side of the video, px")
    parser.add_argument("--base-url", default=os.getenv("OPENAI_BASE_URL"), help="default: OpenAI")
    parser.add_argument("--api-key", default=os.getenv("OPENAI_API_KEY", "none"))
    parser.add_argument("--llm", default="gpt-4.1-mini", help="model that thinks")
    parser.add_argument("--stt", default="whisper-1", help="model that recognises speech")
    parser.add_argument("--tts", default="gpt-4o-mini-tts", help="model that speaks")
    parser.add_argument("--voice", default="coral", help="one of OpenAI's voices")
    return parser


if __name__ == "__main__":
    from pipecat.runner.run import main

    main(command_line())
