"""Recording commands sign their files; `letstalk sign` and `letstalk verify` work on files."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.certificates import Issued, issue
from support.commands import Run
from support.films import scene, write_film

from letstalk_rt.recording import signing
from letstalk_rt.recording.file import write_video
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.signing import Verification

pytest.importorskip("c2pa")

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return issue(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def speech(tmp_path: Path) -> str:
    path = tmp_path / "speech.mkv"
    write_video(path, [], np.full(16_000, 0.2, np.float32), 16_000)
    return str(path)


def test_a_render_is_signed_with_the_consent_of_its_avatar(
    run: Run, tmp_path: Path, portrait: str, speech: str, issued: Issued
) -> None:
    assert run("avatars", "add", "anna", portrait, "--consent-by", "Anna Smith")[0] == 0
    listed = json.loads(run("avatars", "list", "--json")[1])["avatars"]
    (consent,) = [avatar["consent"] for avatar in listed if avatar["name"] == "anna"]
    assert consent["by"] == "Anna Smith"
    out = tmp_path / "out.mp4"
    status, text = run("render", "anna", speech, "-o", out, "--sign", issued.chain, issued.key)
    assert status == 0, text
    status, text = run("verify", out, "--trust", issued.authority, "--json")
    found = json.loads(text)
    assert status == 0 and found["state"] == "trusted" and found["signer"] == "signer"
    stated = {"recorded": True, "at": consent["at"]}
    assert found["provenance"] == {"model": "tiny", "badge": True, "consent": stated}
    assert found["source_type"].endswith("/trainedAlgorithmicMedia")
    assert b"Anna Smith" not in out.read_bytes()


def test_a_live_recording_is_signed_at_its_end(
    run: Run, tmp_path: Path, portrait: str, speech: str, issued: Issued
) -> None:
    out = tmp_path / "out.mp4"
    pair = ("--sign", issued.chain, issued.key)
    status, text = run("mic", portrait, "--audio", speech, "-o", out, "--no-badge", *pair)
    assert status == 0, text
    status, text = run("verify", out)
    assert status == 0 and "intact" in text and "no badge, consent not recorded" in text
    status, text = run("verify", out, "--trust", issued.authority)
    assert status == 0 and "trusted" in text
    data = bytearray(out.read_bytes())
    data[-50] ^= 1
    out.write_bytes(data)
    status, text = run("verify", out)
    assert status == 1 and "changed" in text and "bmffHash.mismatch" in text
    status, text = run("sign", out, *pair)
    assert status == 2 and "has been changed since it was signed" in text


def test_a_recording_without_a_signature_can_be_signed_later(
    run: Run, tmp_path: Path, issued: Issued
) -> None:
    out = tmp_path / "out.mp4"
    frames = [np.full((96, 128, 3), 9 * index, np.uint8) for index in range(25)]
    made = Provenance("b", False, "2026-11-22T10:00:00+00:00")
    write_video(out, frames, np.zeros(16_000, np.float32), 16_000, provenance=made)
    assert run("verify", out)[0] == 1
    status, text = run("sign", out, "--sign", issued.chain, issued.key, "--json")
    assert status == 0 and json.loads(text)["model"] == "b"
    other = issue(tmp_path, "other")
    assert run("verify", out, "--trust", other.authority)[0] == 1
    status, text = run("verify", out, "--trust", issued.authority)
    assert status == 0 and "model b, no badge, consent recorded 2026-11-22T10" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "mira", "SPEECH", "-o", "OUT.mkv", "--sign", "CERT", "KEY"], "cannot carry"),
        (["mic", "mira", "--audio", "SPEECH", "-o", "OUT.mkv", "--sign", "CERT", "KEY"], "cannot"),
        (["mic", "mira", "--audio", "SPEECH", "--camera", "--sign", "CERT", "KEY"], "--output"),
        (["render", "mira", "SPEECH", "-o", "OUT.mp4", "--sign", "CERT", "CERT"], "not a private"),
        (["render", "mira", "SPEECH", "-o", "OUT.mp4", "--sign", "NONE", "KEY"], "Cannot read"),
        (["dub", "FILM", "SPEECH", "-o", "OUT.mkv", "--sign", "CERT", "KEY"], "cannot carry"),
        (["dub", "FILM", "SPEECH", "-o", "OUT.mp4", "--sign", "KEY", "KEY"], "not a certificate"),
        (["sign", "SPEECH", "--sign", "CERT", "KEY"], "speech.mkv cannot carry a C2PA"),
        (["verify", "SPEECH"], "speech.mkv cannot carry a C2PA"),
        (["verify", "OUT.mp4"], "Cannot read"),
        (["verify", "OUT.mp4", "--trust", "KEY"], "not a certificate"),
    ],
)
def test_what_cannot_be_signed_or_verified_is_one_line_and_status_2(
    run: Run, tmp_path: Path, speech: str, issued: Issued, arguments: list[str], message: str
) -> None:
    film = write_film(tmp_path / "film.mp4", scene(3))
    names = {"FILM": str(film), "SPEECH": speech, "CERT": str(issued.chain), "KEY": str(issued.key)}
    names |= {"OUT.mkv": str(tmp_path / "out.mkv"), "OUT.mp4": str(tmp_path / "out.mp4")}
    status, text = run(*(names.get(argument, argument) for argument in arguments))
    assert status == 2 and message in text and text.count("\n") == 1, text
    assert not (tmp_path / "out.mkv").exists() and not (tmp_path / "out.mp4").exists()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_certificate_of_the_deployment_page_can_sign(
    run: Run, tmp_path: Path, portrait: str, speech: str
) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (script,) = [block for block in blocks if "openssl genpkey" in block]
    command = ["bash", "-e", "-c", script]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    out, pair = tmp_path / "out.mp4", (tmp_path / "sign.pem", tmp_path / "sign.key")
    assert run("render", portrait, speech, "-o", out, "--sign", *pair)[0] == 0
    status, text = run("verify", out, "--trust", tmp_path / "authority.pem")
    assert status == 0 and "signer: Example recordings" in text
    assert (tmp_path / "sign.key").stat().st_mode & 0o077 == 0


def test_what_a_file_says_cannot_forge_a_verdict(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie = "x\n\x1b[2Ka.mp4: trusted: unchanged\r\x9b31m"
    found = Verification("changed", lie, "http://a/" + lie, Provenance(lie, True, lie), (lie, "b"))
    monkeypatch.setattr(signing, "verify_recording", lambda *_: found)
    status, text = run("verify", tmp_path / "a.mp4")
    assert status == 1 and "\x1b" not in text and "\x9b" not in text and "\r" not in text
    assert [line for line in text.splitlines() if "trusted" in line and "\\n" not in line] == []
    assert len(text.splitlines()) == 5
