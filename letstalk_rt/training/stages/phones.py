"""Pretrains the audio encoder to recognise phones, on speech with known phone times.

There are two sources. The espeak-ng library synthesises speech in many voices, speeds and pitches
and reports the time of each phone. The recordings of the data folder are labelled by pocketsphinx's
phone recogniser: less exact, but natural speech.
"""

import ctypes
import ctypes.util
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from letstalk_rt.errors import DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig, CausalAudioEncoder
from letstalk_rt.models.audio_encoder.mel import STEP, StreamingMel
from letstalk_rt.training.data.audio_features import MEL_PER_FRAME, augment_mel
from letstalk_rt.training.data.dataset import decode_audio, read_index
from letstalk_rt.training.distributed import main_process_first
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.types import SAMPLE_RATE

SILENCE = 0
"""The class of silence and noise, in both alphabets."""

_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_PHONEME = 7
VOICES = ("en-us", "en-gb", "en-gb-scotland", "de", "fr", "es", "it", "nl", "sv", "pt")
VARIANTS = tuple(f"m{i}" for i in range(1, 9)) + tuple(f"f{i}" for i in range(1, 6)) + (
    "Andrea", "Annie", "David", "Denis", "Diogo", "Jacky", "Lee", "Linda", "Mario", "Max",
    "Michael", "Mike", "Reed", "Steph", "Tweaky", "UniRobot", "victor", "zac",
)  # fmt: skip
SENTENCE_WORDS = 9


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class PhoneTrack:
    """Speech with the phone of each 10 ms.

    Attributes:
        pcm: `(160 * S,)` float32 at 16 kHz.
        phones: Classes of `alphabet`, `(S,)` int64; 0 is silence.
        alphabet: `espeak` or `sphinx`.
    """

    pcm: np.ndarray
    phones: np.ndarray
    alphabet: str


@functools.cache
def _espeak() -> "Espeak":
    return Espeak()


class Espeak:
    """The espeak-ng library: text to speech with the time of each phone.

    The library has one state per process and must not be initialised twice: use the instance that
    `_espeak` returns.

    Raises:
        DependencyError: The library is not installed.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise DependencyError(
                "espeak-ng is missing; install it with: apt-get install espeak-ng"
            )
        self._lib = ctypes.CDLL(name)
        self.rate_hz = self._lib.espeak_Initialize(_SYNCHRONOUS, 200, None, _PHONEME_EVENTS)
        self._chunks: list[np.ndarray] = []
        self._marks: list[tuple[int, str]] = []
        self._callback = _Callback(self._collect)  # the library holds no reference
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, wav: Any, count: int, events: Any) -> int:
        if count > 0:
            self._chunks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        index = 0
        while events[index].type != 0:
            event = events[index]
            if event.type == _PHONEME:
                self._marks.append((event.audio_position, event.id.string.decode(errors="ignore")))
            index += 1
        return 0

    def speak(
        self, text: str, voice: str, *, words_per_minute: int, pitch: int, pitch_range: int
    ) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Return int16 PCM `(n,)` at `rate_hz`, and the start (ms) and name of each phone."""
        self._chunks, self._marks = [], []
        self._lib.espeak_SetVoiceByName(voice.encode())
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self._chunks]), self._marks


def synthetic_tracks(words: list[str], sentences: int, seed: int = 0) -> list[PhoneTrack]:
    """Synthesise random sentences in random voices, labelled in one alphabet."""
    rng, espeak = np.random.default_rng(seed), _espeak()
    spoken = []
    for _ in tqdm(range(sentences), desc="synthetic speech"):
        text = " ".join(rng.choice(words, SENTENCE_WORDS))
        spoken.append(
            espeak.speak(
                text,
                f"{rng.choice(VOICES)}+{rng.choice(VARIANTS)}",
                words_per_minute=int(rng.integers(110, 230)),
                pitch=int(rng.integers(20, 80)),
                pitch_range=int(rng.integers(20, 90)),
            )
        )
    names = sorted({name for _, marks in spoken for _, name in marks if _is_phone(name)})
    classes = {name: index + 1 for index, name in enumerate(names)}
    return [_track(pcm, marks, espeak.rate_hz, classes) for pcm, marks in spoken if len(pcm) > 8000]


def _is_phone(name: str) -> bool:
    return bool(name.strip("_:;| ")) and not name.startswith("(")


def _track(
    pcm: np.ndarray, marks: list[tuple[int, str]], rate_hz: int, classes: dict[str, int]
) -> PhoneTrack:
    speech = soxr.resample(pcm.astype(np.float32) / 32768, rate_hz, SAMPLE_RATE)
    steps = len(speech) // STEP
    phones = np.full(steps, SILENCE, np.int64)
    for (start_ms, name), (stop_ms, _) in zip(marks, [*marks[1:], (10 * steps, "")], strict=True):
        phones[start_ms // 10 : stop_ms // 10] = classes.get(name, SILENCE)
    return PhoneTrack(speech[: steps * STEP].astype(np.float32), phones, "espeak")


def english_words() -> list[str]:
    """Return the words of pocketsphinx's dictionary.

    Raises:
        DependencyError: The extra `train` is not installed.
    """
    lines = Path(_sphinx().get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    return [word for line in lines if (word := line.split(" ")[0]).isalpha() and len(word) > 1]


def natural_tracks(recordings: Iterator[np.ndarray]) -> list[PhoneTrack]:
    """Label recordings, `(n,)` float32 at 16 kHz, by a phone recogniser."""
    sphinx = _sphinx()
    decoder = sphinx.Decoder(
        hmm=sphinx.get_model_path("en-us/en-us"),
        allphone=sphinx.get_model_path("en-us/en-us-phone.lm.bin"),
        dict=None,
        lm=None,
        lw=2.0,
        pip=0.3,
        beam=1e-20,
        pbeam=1e-20,
        loglevel="FATAL",
    )
    tracks = []
    for pcm in tqdm(recordings, desc="natural speech"):
        decoder.start_utt()
        decoder.process_raw((np.clip(pcm, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        steps = len(pcm) // STEP
        phones = np.full(steps, SILENCE, np.int64)
        for part in decoder.seg():
            phones[part.start_frame : part.end_frame + 1] = _SPHINX.get(part.word, SILENCE)
        tracks.append(PhoneTrack(pcm[: steps * STEP], phones, "sphinx"))
    return tracks


def _sphinx() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise DependencyError(
            f"pocketsphinx is missing; install it with: {pip_install('train')}"
        ) from error
    return pocketsphinx


_SPHINX = {
    name: index + 1
    for index, name in enumerate(
        "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW"
        " V W Y Z ZH".split()
    )
}


@dataclass(frozen=True)
class MelPhoneTrack:
    """A track in the form that the encoder is trained on: log-mel `(64, S)` and phones `(S,)`."""

    mel: Tensor
    phones: Tensor
    alphabet: str


@main_process_first
def load_phones(root: Path, cache: Path, sentences: int = 1200) -> list[MelPhoneTrack]:
    """Return speech with phone times; it is made at the first call and then read from the cache.

    Args:
        root: The data folder; the recogniser labels its speech and its training clips.
        cache: The folder in which the result is stored.
        sentences: Number of synthetic sentences, about 4.5 s each.
    """
    stored = cache / "phones.pt"
    if not stored.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tracks = synthetic_tracks(english_words(), sentences) + natural_tracks(_recordings(root))
        torch.save([vars(_with_mel(track)) for track in tracks], stored)
    return [MelPhoneTrack(**row) for row in torch.load(stored, weights_only=True)]


@torch.no_grad()
def _with_mel(track: PhoneTrack) -> MelPhoneTrack:
    mel = StreamingMel()(torch.from_numpy(track.pcm)[None])[0]
    return MelPhoneTrack(mel.half(), torch.from_numpy(track.phones), track.alphabet)


def _recordings(root: Path) -> Iterator[np.ndarray]:
    for row in read_index(root, "speech.jsonl"):
        if row["tag"] == "ship":
            yield decode_audio(root / "speech" / str(row["file"]))
    for row in read_index(root, "clips.jsonl"):
        audio = root / "clips" / f"{row['name']}.flac"
        if row["split"] == "train" and row["tag"] == "ship" and audio.exists():
            yield decode_audio(audio)


class PhoneReader(nn.Module):
    """The audio encoder with a phone classifier for each alphabet.

    Args:
        classes: Number of classes by alphabet, silence included.
        config: The encoder's configuration; None for the default.
    """

    def __init__(self, classes: dict[str, int], config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        self.audio = CausalAudioEncoder(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.audio.config.width, count) for name, count in classes.items()}
        )

    def forward(self, mel: Tensor, alphabet: str) -> Tensor:
        """Return logits `(B, S, classes)`; entry `i` is the phone one look-ahead earlier."""
        logits: Tensor = self.heads[alphabet](self.audio.features(mel).transpose(1, 2))
        return logits


def train_phones(
    tracks: list[MelPhoneTrack],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 24,
    steps: int = 256,
    encoder: AudioEncoderConfig | None = None,
    initial_weights: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Train the audio encoder on phones and return the averaged reader.

    Args:
        tracks: From `load_phones`; every 20th is for validation and not trained on.
        folder: The run's folder.
        config: Schedule.
        batch_size: Items per step, all of one alphabet.
        steps: Length of an item, in steps of 10 ms.
        encoder: Shape and look-ahead of the audio encoder; None for the default.
        initial_weights: Weights of an audio encoder to start from.
    """
    torch.manual_seed(0)
    names = sorted({track.alphabet for track in tracks})
    classes = {n: 1 + max(int(t.phones.max()) for t in tracks if t.alphabet == n) for n in names}
    tracks = [track for track in tracks if len(track.phones) > steps]
    training = {n: [t for i, t in enumerate(tracks) if t.alphabet == n and i % 20] for n in names}
    validation = {n: [t for t in tracks[::20] if t.alphabet == n] for n in names}
    reader = PhoneReader(classes, encoder)
    if initial_weights is not None:
        reader.audio.load_state_dict(initial_weights)
    delay = reader.audio.lookahead_frames * MEL_PER_FRAME
    run = Run(folder, reader, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        name = names[step % len(names)]
        mel, phones = _draw(training[name], batch_size, steps, run.generator)
        mel, phones = augment_mel(mel, run.generator).to(run.device), phones.to(run.device)
        logits, target = reader(mel, name)[:, delay:], phones[:, : steps - delay]
        accuracy = (logits.argmax(-1) == target).float().mean()
        value = F.cross_entropy(logits.transpose(1, 2), target)
        return value, {f"accuracy_{name}": float(accuracy)}

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, PhoneReader)
        return {f"phones_{n}": _accuracy(averaged, validation[n], delay) for n in names}

    return run.train(loss, evaluate)


def _draw(
    tracks: list[MelPhoneTrack], count: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([float(len(track.phones)) for track in tracks])
    mels, phones = [], []
    for index in torch.multinomial(lengths, count, True, generator=generator).tolist():
        track = tracks[index]
        start = int(torch.randint(len(track.phones) - steps, (1,), generator=generator))
        mels.append(track.mel[:, start : start + steps].float())
        phones.append(track.phones[start : start + steps])
    return torch.stack(mels), torch.stack(phones)


@torch.no_grad()
def _accuracy(reader: PhoneReader, tracks: list[MelPhoneTrack], delay: int) -> float:
    """Return the share of 10 ms steps of speech whose phone is recognised."""
    device, correct, count = next(reader.parameters()).device, 0, 0
    for track in tracks:
        logits = reader(track.mel.float()[None].to(device), track.alphabet)[0, delay:]
        target = track.phones[: len(track.phones) - delay].to(device)
        speech = target != SILENCE
        correct += int((logits.argmax(-1) == target)[speech].sum())
        count += int(speech.sum())
    return correct / max(count, 1)
