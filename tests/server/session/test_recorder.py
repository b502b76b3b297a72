"""Sessions are recorded and signed where the operator asks for it, and deleted with the avatar."""

import asyncio

import av
import numpy as np
import pytest
from support.certificates import issue
from support.server_fakes import Peer, patient, portrait_jpeg, problem, serving

from letstalk_rt.errors import ConfigError
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.recording.credentials import read_authority
from letstalk_rt.recording.signing import verify_recording
from letstalk_rt.types import AVFrame, Portrait
from letstalk_server.auth import OPERATOR, Caller
from letstalk_server.main import parse
from letstalk_server.session.avatar_service import AvatarEntry
from letstalk_server.session.ids import new_id
from letstalk_server.session.playout import PlayoutSlot
from letstalk_server.session.recorder import RecordingStore, SessionRecorder
from letstalk_server.settings import Settings

pytest.importorskip("c2pa")

UPLOAD = "/v1/avatars?consent=true"
AGREED = Consent("user-17", "2026-11-22T10:00:00+00:00")


def entry(name="anna", size=(96, 128)):
    canvas = np.full((*size, 3), 90, np.uint8)
    portrait = Portrait(canvas, canvas[:96, :96], (0.0, 0.0, 96.0))
    return AvatarEntry(name, "Anna", "user-17", portrait, b"", b"", AGREED)


def settings(tmp_path, **changes):
    keys = issue(tmp_path)
    made = {"sign_cert": str(keys.chain), "sign_key": str(keys.key)}
    return keys, Settings(record_folder=str(tmp_path / "recordings"), **(made | changes))


def slots(count, entry, start=0):
    for index in range(start, start + count):
        rgb = np.full(entry.portrait.canvas.shape, index % 200, np.uint8)
        frame = AVFrame(rgb, np.zeros(640, np.float32), index, 0, 0)
        yield PlayoutSlot(index, rgb, frame.pcm, False, frame)


def frames_in(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


async def record(store, shown, on_failure=lambda: None):
    """Show slots of one avatar after the other, at the pace at which they are written."""
    now = [shown[0][0]]
    recorder = SessionRecorder(
        store, lambda: now[0], badge=True, sample_rate=16_000, on_failure=on_failure
    )
    start = 0
    for one, count in shown:
        now[0] = one
        for slot in slots(count, one, start):
            recorder.show(slot)
            await asyncio.sleep(0)
        start += count
        await asyncio.sleep(0.2)
    return recorder


async def test_a_session_is_recorded_and_signed(tmp_path):
    keys, chosen = settings(tmp_path)
    recorder = await record(RecordingStore.open(chosen), [(entry(), 40)])
    await recorder.aclose()
    await recorder.aclose()
    (path,) = (tmp_path / "recordings" / "anna").glob("*.mp4")
    found = verify_recording(path, read_authority(keys.authority))
    assert found.state == "trusted" and found.provenance.consent_at == AGREED.at
    assert (found.provenance.model, found.provenance.badge) == ("tiny", True)
    assert frames_in(path) + recorder.dropped == 40
    assert b"user-17" not in path.read_bytes()


async def test_another_avatar_begins_another_file(tmp_path):
    _, chosen = settings(tmp_path)
    shown = [(entry(), 30), (entry("ben", (128, 96)), 40)]
    recorder = await record(RecordingStore.open(chosen), shown)
    await recorder.aclose()
    for name, size in (("anna", (128, 96)), ("ben", (96, 128))):
        (path,) = (tmp_path / "recordings" / name).glob("*.mp4")
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == size


async def test_recordings_are_deleted_with_the_avatar_also_while_they_run(tmp_path):
    _, chosen = settings(tmp_path)
    store = RecordingStore.open(chosen)
    recorder = await record(store, [(entry(), 30)])
    assert list((tmp_path / "recordings" / "anna").iterdir())
    store.delete("anna")
    for slot in slots(20, entry(), 30):
        recorder.show(slot)
    await recorder.aclose()
    assert not (tmp_path / "recordings" / "anna").exists()


async def test_recordings_belong_to_the_owner_of_the_portrait_after_a_restart(tmp_path):
    chosen = Settings(record_folder=str(tmp_path / "recordings"))
    name = new_id(chosen)
    for one in (entry(name), entry("anna")):
        await (await record(RecordingStore.open(chosen), [(one, 10)])).aclose()
    for path in (tmp_path / "recordings" / name).iterdir():
        assert b"user-17" not in path.read_bytes()
    store = RecordingStore.open(chosen)
    ann, bob = [Caller(subject, frozenset()) for subject in ("user-17", "bob")]
    assert store.may_delete(name, ann) and store.may_delete(name, OPERATOR)
    assert not store.may_delete(name, bob)
    escapes = ("anna", "..", "../recordings", f"../recordings/{name}", f"{name}/", "", "\0")
    assert not any(store.may_delete(text, OPERATOR) for text in (new_id(chosen), *escapes))
    store.delete(name)
    assert not store.may_delete(name, ann)


async def test_recordings_of_a_dropped_portrait_can_still_be_deleted(tmp_path):
    key = "k" * 40
    locked = {"auth": "on", "api_key": key, "secret": "s" * 40, "max_portraits": 1}
    async with serving(patient(record_folder=str(tmp_path), **locked)) as (app, client):
        operator = {"authorization": f"Bearer {key}"}

        async def caller(subject):
            made = await client.post("/v1/tokens", json={"subject": subject}, headers=operator)
            return {"authorization": f"Bearer {made.json()['token']}"}

        async def upload(who):
            made = await client.post(UPLOAD, content=portrait_jpeg(), headers=who)
            return made.json()["id"]

        ann, bob = await caller("user-17"), await caller("bob")
        for remover in (ann, operator):
            name = await upload(ann)
            await (await record(app.state.recordings, [(entry(name), 10)])).aclose()
            await upload(bob)
            address = f"/v1/avatars/{name}"
            problem(await client.get(address, headers=ann), 404, "unknown-avatar")
            problem(await client.delete(address, headers=bob), 404, "unknown-avatar")
            assert list((tmp_path / name).glob("*.mp4"))
            assert (await client.delete(address, headers=remover)).status_code == 204
            assert not (tmp_path / name).exists()
            problem(await client.delete(address, headers=remover), 404, "unknown-avatar")


async def test_a_folder_that_is_lost_ends_the_recording_alone(tmp_path, caplog):
    _, chosen = settings(tmp_path)
    store = RecordingStore.open(chosen)
    (tmp_path / "recordings").rmdir()
    failures = []
    recorder = await record(store, [(entry(), 60)], lambda: failures.append("failed"))
    await recorder.aclose()
    assert failures == ["failed"]
    assert "not recorded any more (ConfigError)" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_wrong_settings_are_refused_at_the_start(tmp_path):
    assert RecordingStore.open(Settings()) is None
    with pytest.raises(ConfigError, match="set together"):
        Settings(record_folder="r", sign_cert="c")
    with pytest.raises(ConfigError, match="set record_folder, too"):
        Settings(sign_cert="c", sign_key="k")
    other = issue(tmp_path, "other")
    _, chosen = settings(tmp_path, sign_key=str(other.key))
    with pytest.raises(ConfigError, match="does not belong"):
        RecordingStore.open(chosen)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        RecordingStore.open(Settings(record_folder=str(tmp_path / "file" / "x")))


def test_the_settings_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LETSTALK_RECORD_FOLDER", "record_folder")
    monkeypatch.setenv("LETSTALK_SIGN_CERT", "sign_cert")
    monkeypatch.setenv("LETSTALK_SIGN_KEY", "sign_key")
    found = parse([])
    assert (found.record_folder, found.sign_cert, found.sign_key) == (
        "record_folder",
        "sign_cert",
        "sign_key",
    )


async def test_the_server_records_says_so_and_deletes(tmp_path):
    keys, _ = settings(tmp_path)
    chosen = patient(
        record_folder=str(tmp_path / "recordings"),
        sign_cert=str(keys.chain),
        sign_key=str(keys.key),
    )
    async with serving(chosen) as (_, client):
        made = await client.post("/v1/avatars?consent=true", content=portrait_jpeg((10, 90, 30)))
        uploaded = made.json()
        assert uploaded["consent_at"].endswith("+00:00")
        assert (await client.get("/v1/config")).json()["disclosure"]["recorded"]
        opened = await client.post("/v1/sessions", json={"avatar": uploaded["id"]})
        session = opened.json()
        assert session["disclosure"]["recorded"] and session["disclosure"]["signed"]
        peer = await Peer().join(client, session=session["session"])
        folder = tmp_path / "recordings" / uploaded["id"]
        for _ in range(400):
            if any(path.stat().st_size > 0 for path in folder.glob("*.mp4")):
                break
            await asyncio.sleep(0.05)
        await peer.close()
        await client.delete(f"/v1/sessions/{session['session']}")
        (path,) = folder.glob("*.mp4")
        found = verify_recording(path)
        assert found.state == "intact" and found.provenance.consent_at == uploaded["consent_at"]
        await client.delete(f"/v1/avatars/{uploaded['id']}")
        assert not folder.exists()
