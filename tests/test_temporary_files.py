"""What is written to the system's folder for temporary files does not stay there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_a_server_that_was_interrupted_leaves_no_file(tmp_path):
    command = [sys.executable, "-m", "support.server_fakes", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=TESTS, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert "http" in server.stdout.readline()
            assert list(tmp_path.iterdir()), "the painted avatars are files"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    assert server.returncode == 0
    assert not list(tmp_path.iterdir())
