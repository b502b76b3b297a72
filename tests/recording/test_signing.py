"""Recordings state how they were made, and a signature shows that nobody changed them since."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import Issued, issue

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.portrait.watermark import SOURCE_TYPE
from letstalk_rt.recording.credentials import SigningCredentials, read_authority
from letstalk_rt.recording.file import Recording, VideoWriter, write_video
from letstalk_rt.recording.provenance import Provenance, read_provenance
from letstalk_rt.recording.signing import sign_existing, sign_recording, verify_recording
from letstalk_rt.types import AVFrame

pytest.importorskip("c2pa")

ROOT = Path(__file__).parents[2]
MADE = Provenance("tiny", True, "2026-11-22T10:00:00+00:00")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return issue(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def credentials(issued: Issued) -> SigningCredentials:
    return SigningCredentials.read(issued.chain, issued.key)


def images(count: int = 30) -> list[np.ndarray]:
    return [np.full((96, 128, 3), 5 * index, np.uint8) for index in range(count)]


def write(path: Path, credentials: SigningCredentials | None = None) -> Path:
    pcm = np.full(30 * 640, 0.1, np.float32)
    write_video(path, images(), pcm, 16_000, provenance=MADE, credentials=credentials)
    return path


def record(path: Path, credentials: SigningCredentials | None = None) -> Path:
    recording = Recording(path, provenance=MADE, credentials=credentials)
    recording.open(128, 96)
    for index, rgb in enumerate(images()):
        recording.show(AVFrame(rgb, np.full(640, 0.1, np.float32), index, 0, 0))
    recording.close()
    return path


def cut_off(path: Path) -> Path:
    """Record in a process that dies before it can close the file."""
    code = f"""
import os, numpy as np
from letstalk_rt.recording.file import VideoWriter
from letstalk_rt.recording.provenance import Provenance
made = Provenance("tiny", True, {MADE.consent_at!r})
writer = VideoWriter({str(path)!r}, 16_000, crash_safe=True, x264={{"preset": "superfast"}},
                     provenance=made)
writer.__enter__()
for index in range(150):
    writer.write(np.full((96, 128, 3), index, np.uint8), np.zeros(640, "f4"))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    return path


def decode(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [
            (int(packet.pts), hash(bytes(packet)))
            for packet in container.demux()
            if packet.pts is not None
        ]


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("make", [write, record])
@pytest.mark.parametrize("name", ["out.mp4", "out.m4v", "out.mov"])
def test_a_recording_is_signed_when_it_is_complete(
    tmp_path: Path, issued: Issued, credentials: SigningCredentials, make, name: str
) -> None:
    path = make(tmp_path / name, credentials)
    found = verify_recording(path, read_authority(issued.authority))
    assert (found.state, found.signer, found.failures) == ("trusted", "signer", ())
    assert found.source_type == SOURCE_TYPE and found.provenance == MADE
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert decode(path) == decode(make(tmp_path / f"unsigned-{name}"))


def test_without_an_authority_nobody_vouches_for_the_signer(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    assert verify_recording(record(tmp_path / "out.mp4", credentials)).state == "intact"
    assert verify_recording(record(tmp_path / "plain.mp4")).state == "unsigned"


def test_the_certificate_of_another_authority_is_not_trusted(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    other = issue(tmp_path, "other")
    path = record(tmp_path / "out.mp4", credentials)
    assert verify_recording(path, read_authority(other.authority)).state == "intact"


def test_any_changed_byte_of_picture_sound_or_manifest_is_found(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    path = record(tmp_path / "out.mp4", credentials)
    data = path.read_bytes()
    places = [data.index(b"mdat") + 40, len(data) // 2, len(data) - 40, data.index(b"moov") + 60]
    places += [data.index(b"trainedAlgorithmicMedia"), data.index(b"tiny"), data.index(b"jumb") + 9]
    for place in places:
        path.write_bytes(data)
        change(path, place)
        found = verify_recording(path)
        assert found.state == "changed" and found.failures, place


def test_damaged_files_are_never_more_than_changed(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    path = record(tmp_path / "out.mp4", credentials)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        start = int(rng.integers(32, len(data) - 8))
        damaged[start : start + 4] = rng.bytes(4)
        path.write_bytes(damaged[: int(rng.integers(start, len(data)))])
        assert verify_recording(path).state in ("changed", "unsigned")


def test_a_recording_that_a_crash_cut_off_can_be_signed(
    tmp_path: Path, issued: Issued, credentials: SigningCredentials
) -> None:
    path = cut_off(tmp_path / "out.mp4")
    before = decode(path)
    assert len(before) > 100 and read_provenance(path) == MADE
    assert sign_existing(path, credentials) == MADE
    found = verify_recording(path, read_authority(issued.authority))
    assert (found.state, found.provenance, decode(path)) == ("trusted", MADE, before)
    with pytest.raises(ConfigError, match="is signed; only"):
        sign_existing(path, credentials)
    change(path, path.stat().st_size - 100)
    with pytest.raises(ConfigError, match="has been changed"):
        sign_existing(path, credentials)


def test_a_recording_cut_short_anywhere_can_be_signed(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    data = cut_off(tmp_path / "whole.mp4").read_bytes()
    path = tmp_path / "out.mp4"
    first = data.index(b"moof")
    for length in range(first + 2500, len(data), 97):
        path.write_bytes(data[:length])
        try:
            before = decode(path)
        except av.FFmpegError:  # cut within an index: players refuse it until it is signed
            before = None
        sign_existing(path, credentials)
        assert verify_recording(path).state == "intact" and len(decode(path)) > 20
        assert before in (None, decode(path))
    path.write_bytes(path.read_bytes()[:-9])
    assert verify_recording(path).state == "changed"


def test_the_media_of_others_is_not_signed(tmp_path: Path, credentials: SigningCredentials) -> None:
    foreign, ours = tmp_path / "foreign.mp4", record(tmp_path / "ours.mp4")
    with av.open(str(ours)) as source, av.open(str(foreign), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    before = foreign.read_bytes()
    with pytest.raises(ConfigError, match="not a recording of letstalk_rt"):
        sign_existing(foreign, credentials)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ConfigError, match="text.mp4"):
        sign_existing(tmp_path / "text.mp4", credentials)
    assert foreign.read_bytes() == before


def test_matroska_is_refused_before_anything_is_written(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    with pytest.raises(ConfigError, match="out.mkv cannot carry a C2PA signature"):
        Recording(tmp_path / "out.mkv", credentials=credentials)
    assert not list(tmp_path.iterdir())
    path = record(tmp_path / "out.mkv")
    for call in (lambda: sign_existing(path, credentials), lambda: verify_recording(path)):
        with pytest.raises(ConfigError, match="only .mp4, .m4v, .mov can"):
            call()


def test_the_wrong_key_is_refused_before_the_recording(tmp_path: Path, issued: Issued) -> None:
    other = issue(tmp_path, "other")
    with pytest.raises(ConfigError, match="does not belong to the first certificate"):
        SigningCredentials.read(issued.chain, other.key)
    with pytest.raises(ConfigError, match="does not belong"):
        SigningCredentials.read(issued.authority, issued.key)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"usage": "key_encipherment"}, "lacks the key usage digitalSignature"),
        ({"purpose": ExtendedKeyUsageOID.SERVER_AUTH}, "lacks .*emailProtection"),
        ({"curve": ec.SECP384R1()}, "P-256"),
        ({"days": -2}, "valid from .* only"),
        ({"name": "Test authority"}, "self-signed"),
        ({"passphrase": b"secret-phrase"}, "has a passphrase"),
    ],
)
def test_unfit_certificates_are_refused_with_the_reason(tmp_path: Path, made, reason: str) -> None:
    files = issue(tmp_path, **made)
    with pytest.raises(ConfigError, match=reason):
        SigningCredentials.read(files.chain, files.key)


def test_files_that_hold_no_key_are_refused_without_repeating_them(
    tmp_path: Path, issued: Issued
) -> None:
    junk = tmp_path / "junk.pem"
    secret = b"MHcCAQEEISECRET"
    junk.write_bytes(b"-----BEGIN EC PRIVATE KEY-----\n" + secret)
    for pair in ((issued.chain, junk), (junk, issued.key), (tmp_path / "none.pem", issued.key)):
        with pytest.raises(ConfigError) as refused:
            SigningCredentials.read(*pair)
        assert "SECRET" not in str(refused.value) and "PEM" in str(refused.value) + "PEM"
    with pytest.raises(ConfigError, match="junk.pem is not a certificate"):
        read_authority(junk)


def test_credentials_do_not_show_in_a_repr(credentials: SigningCredentials) -> None:
    assert repr(credentials) == "SigningCredentials()"


def test_a_full_disk_leaves_the_recording_unsigned_and_whole(
    tmp_path: Path, credentials: SigningCredentials, issued: Issued
) -> None:
    path = record(tmp_path / "out.mp4")
    before = path.read_bytes()
    code = f"""
import resource, sys
from pathlib import Path
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.signing import sign_recording
credentials = SigningCredentials.read(Path({str(issued.chain)!r}), Path({str(issued.key)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {len(before)}))
sign_recording(Path({str(path)!r}), credentials, Provenance())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Cannot sign" in ended.stderr and "It was left unsigned" in ended.stderr
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    sign_existing(path, credentials)
    assert verify_recording(path).state == "intact"


def test_a_render_that_cannot_be_signed_is_kept(tmp_path: Path, issued: Issued) -> None:
    path, limit = tmp_path / "out.mp4", write(tmp_path / "plain.mp4").stat().st_size + 100
    code = f"""
import resource, numpy as np
from pathlib import Path
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.file import write_video
credentials = SigningCredentials.read(Path({str(issued.chain)!r}), Path({str(issued.key)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
frames = [np.full((96, 128, 3), 5 * i, np.uint8) for i in range(30)]
write_video(Path({str(path)!r}), frames, np.full(19200, .1, "f4"), 16_000, credentials=credentials)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Cannot sign" in ended.stderr and str(path) in ended.stderr
    assert len(decode(path)) == 50 and verify_recording(path).state == "unsigned"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "plain.mp4"]


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_disk_that_is_really_full(tmp_path: Path, issued: Issued) -> None:
    path = record(tmp_path / "out.mp4")
    size = 4096 * (path.stat().st_size // 4096 + 1) + 8192
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"""
import os, shutil, subprocess
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={size}", "tmpfs", {str(disk)!r}], check=True)
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.signing import sign_recording
path = Path(shutil.copy({str(path)!r}, {str(disk)!r}))
credentials = SigningCredentials.read(Path({str(issued.chain)!r}), Path({str(issued.key)!r}))
try:
    sign_recording(path, credentials, Provenance())
finally:
    assert path.read_bytes() == Path({str(path)!r}).read_bytes()
    assert len(os.listdir({str(disk)!r})) == 1
"""
    command = ["unshare", "-Urm", sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True)
    if "unshare:" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip("no mounts in namespaces here")
    assert re.search(r"Cannot sign .*No space left on device. It was left unsigned", ended.stderr)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, issued: Issued) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(DependencyError, match=r"pip install '\.\[c2pa\]'"):
        SigningCredentials.read(issued.chain, issued.key)


def test_metadata_of_older_recordings_are_read(
    tmp_path: Path, credentials: SigningCredentials
) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 16_000) as writer:
        for rgb in images():
            writer.write(rgb, np.zeros(640, "f4"))
    assert read_provenance(path) == Provenance(None, True, None)
    sign_recording(path, credentials, Provenance(None, True, None))
    assert verify_recording(path).provenance == Provenance(None, True, None)
