"""Speech with known phone times: what the audio encoder learns before it sees a face.

Two sources. Synthetic voices of the espeak-ng library, which reports when it speaks each phone, in
many voices, speeds and pitches. And the natural voices of the data folder, labelled by
pocketsphinx's phone recogniser: less exact, but they sound like people at microphones.
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
from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig, CausalAudioEncoder
from letstalk_rt.models.audio_encoder.mel import STEP, StreamingMel
from letstalk_rt.training.data.audio_features import MEL_PER_FRAME, augment_mel
from letstalk_rt.training.data.dataset import decode_audio, read_index
from letstalk_rt.training.distributed import first_alone
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.types import SAMPLE_RATE

SILENCE = 0
"""Class of what is no speech, in both alphabets."""

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
    """Sound with the phone that is spoken in each 10 ms.

    Attributes:
        pcm: `(160 * S,)` float32 at 16 kHz.
        phones: `(S,)` int64, classes of `alphabet`; 0 is silence.
        alphabet: `espeak` or `sphinx`.
    """

    pcm: np.ndarray
    phones: np.ndarray
    alphabet: str


@functools.cache
def _espeak() -> "Espeak":
    return Espeak()


class Espeak:
    """The espeak-ng library: text to sound, with the time of each phone.

    The library has one state for the whole process and does not bear to be begun twice: use the
    one of `_espeak`.

    Raises:
        DependencyError: the library is not installed.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise DependencyError(
                "espeak-ng is missing; install it with: apt-get install espeak-ng"
            )
        self._lib = ctypes.CDLL(name)
        self.rate_hz = self._lib.espeak_Initialize(_SYNCHRONOUS, 200, None, _PHONEME_EVENTS)
        self._sound: list[np.ndarray] = []
        self._marks: list[tuple[int, str]] = []
        self._callback = _Callback(self._collect)  # kept: the library holds no reference
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, wav: Any, count: int, events: Any) -> int:
        if count > 0:
            self._sound.append(np.ctypeslib.as_array(wav, (count,)).copy())
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
        """Give int16 sound `(n,)` at `rate_hz`, and the start (ms) and name of each phone."""
        self._sound, self._marks = [], []
        self._lib.espeak_SetVoiceByName(voice.encode())
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self._sound]), self._marks


def synthetic_tracks(words: list[str], sentences: int, seed: int = 0) -> list[PhoneTrack]:
    """Speak random sentences in random voices; one alphabet for all of them."""
    chance, espeak = np.random.default_rng(seed), _espeak()
    spoken = []
    for _ in tqdm(range(sentences), desc="synthetic speech"):
        text = " ".join(chance.choice(words, SENTENCE_WORDS))
        spoken.append(
            espeak.speak(
                text,
                f"{chance.choice(VOICES)}+{chance.choice(VARIANTS)}",
                words_per_minute=int(chance.integers(110, 230)),
                pitch=int(chance.integers(20, 80)),
                pitch_range=int(chance.integers(20, 90)),
            )
        )
    names = sorted({name for _, marks in spoken for _, name in marks if _is_sound(name)})
    classes = {name: index + 1 for index, name in enumerate(names)}
    return [_track(pcm, marks, espeak.rate_hz, classes) for pcm, marks in spoken if len(pcm) > 8000]


def _is_sound(name: str) -> bool:
    return bool(name.strip("_:;| ")) and not name.startswith("(")


def _track(
    pcm: np.ndarray, marks: list[tuple[int, str]], rate_hz: int, classes: dict[str, int]
) -> PhoneTrack:
    sound = soxr.resample(pcm.astype(np.float32) / 32768, rate_hz, SAMPLE_RATE)
    steps = len(sound) // STEP
    phones = np.full(steps, SILENCE, np.int64)
    for (start_ms, name), (stop_ms, _) in zip(marks, [*marks[1:], (10 * steps, "")], strict=True):
        phones[start_ms // 10 : stop_ms // 10] = classes.get(name, SILENCE)
    return PhoneTrack(sound[: steps * STEP].astype(np.float32), phones, "espeak")


def english_words() -> list[str]:
    """Give the words of pocketsphinx's dictionary.

    Raises:
        DependencyError: the extra `train` is not installed.
    """
    lines = Path(_sphinx().get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    return [word for line in lines if (word := line.split(" ")[0]).isalpha() and len(word) > 1]


def natural_tracks(sounds: Iterator[np.ndarray]) -> list[PhoneTrack]:
    """Label natural speech `(n,)` float32 at 16 kHz by a phone recogniser."""
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
    for pcm in tqdm(sounds, desc="natural speech"):
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
            "pocketsphinx is missing; install it with: pip install 'letstalk-rt[train]'"
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
    """A track as the encoder hears it: log-mel `(64, S)` and phones `(S,)`."""

    mel: Tensor
    phones: Tensor
    alphabet: str


@first_alone
def load_phones(root: Path, cache: Path, sentences: int = 1200) -> list[MelPhoneTrack]:
    """Make the speech with phone times, or read it from the cache.

    Args:
        root: the data folder; its speech and its training clips are labelled by the recogniser.
        cache: where the result is kept.
        sentences: of synthetic speech, about 4.5 s each.
    """
    stored = cache / "phones.pt"
    if not stored.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tracks = synthetic_tracks(english_words(), sentences) + natural_tracks(_natural(root))
        torch.save([vars(_heard(track)) for track in tracks], stored)
    return [MelPhoneTrack(**row) for row in torch.load(stored, weights_only=True)]


@torch.no_grad()
def _heard(track: PhoneTrack) -> MelPhoneTrack:
    mel = StreamingMel()(torch.from_numpy(track.pcm)[None])[0]
    return MelPhoneTrack(mel.half(), torch.from_numpy(track.phones), track.alphabet)


def _natural(root: Path) -> Iterator[np.ndarray]:
    for row in read_index(root, "speech.jsonl"):
        if row["tag"] == "ship":
            yield decode_audio(root / "speech" / str(row["file"]))
    for row in read_index(root, "clips.jsonl"):
        sound = root / "clips" / f"{row['name']}.flac"
        if row["split"] == "train" and row["tag"] == "ship" and sound.exists():
            yield decode_audio(sound)


class PhoneReader(nn.Module):
    """The audio encoder with a head for each alphabet.

    Args:
        classes: of each alphabet, silence included.
        config: of the encoder; the default one when None.
    """

    def __init__(self, classes: dict[str, int], config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        self.audio = CausalAudioEncoder(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.audio.config.width, count) for name, count in classes.items()}
        )

    def forward(self, mel: Tensor, alphabet: str) -> Tensor:
        """Give logits `(B, S, classes)`; entry `i` names the phone one look-ahead earlier."""
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
    started: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Teach the audio encoder phones, or go on, and give the averaged reader.

    Args:
        tracks: from `load_phones`; every 20th judges and is not trained on.
        folder: of the run.
        config: schedule.
        batch_size: pieces a step, all of one alphabet.
        steps: length of a piece, in 10 ms.
        encoder: shape and look-ahead of the audio encoder; the default one when None.
        started: weights of an audio encoder to begin with.
    """
    torch.manual_seed(0)
    names = sorted({track.alphabet for track in tracks})
    classes = {n: 1 + max(int(t.phones.max()) for t in tracks if t.alphabet == n) for n in names}
    tracks = [track for track in tracks if len(track.phones) > steps]
    kept = {n: [t for i, t in enumerate(tracks) if t.alphabet == n and i % 20] for n in names}
    judges = [t for i, t in enumerate(tracks) if i % 20 == 0]
    reader = PhoneReader(classes, encoder)
    if started is not None:
        reader.audio.load_state_dict(started)
    delay = reader.audio.lookahead_frames * MEL_PER_FRAME
    run = Run(folder, reader, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        name = names[step % len(names)]
        mel, phones = _pieces(kept[name], batch_size, steps, run.generator)
        mel, phones = augment_mel(mel, run.generator).to(run.device), phones.to(run.device)
        logits, wanted = reader(mel, name)[:, delay:], phones[:, : steps - delay]
        right = (logits.argmax(-1) == wanted).float().mean()
        return F.cross_entropy(logits.transpose(1, 2), wanted), {f"right_{name}": float(right)}

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, PhoneReader)
        return {f"phones_{n}": _accuracy(averaged, [t for t in judges if t.alphabet == n], delay)
                for n in names}  # fmt: skip

    return run.train(loss, evaluate)


def _pieces(
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
    """Give the share of 10 ms steps of speech whose phone is named rightly."""
    device, right, count = next(reader.parameters()).device, 0, 0
    for track in tracks:
        logits = reader(track.mel.float()[None].to(device), track.alphabet)[0, delay:]
        wanted = track.phones[:-delay].to(device)
        spoken = wanted != SILENCE
        right += int((logits.argmax(-1) == wanted)[spoken].sum())
        count += int(spoken.sum())
    return right / max(count, 1)
