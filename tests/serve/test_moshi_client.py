"""Kyutai's own Python client, as it is published, talks to our server. It has no sound card here, but a recording."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmspeech.checkpoint import EMBEDDED

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CALL_SEC = 9
# What the client asks of `sounddevice`: blocks of the microphone at their times, and blocks for the speaker.
SOUND_CARD = """
import os, threading, time
import numpy as np, soundfile

class _Stream:
    def __init__(self, samplerate, channels, blocksize, callback):
        self.rate, self.size, self.callback, self.going = int(samplerate), blocksize, callback, True
    def __enter__(self):
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def __exit__(self, *_):
        self.going = False
        self.thread.join()
    def run(self):
        began = time.monotonic()
        number = 0
        while self.going:
            self.block(number)
            number += 1
            time.sleep(max(0.0, began + number * self.size / self.rate - time.monotonic()))

class InputStream(_Stream):
    wave = soundfile.read(os.environ["MICROPHONE"], dtype="float32")[0]
    def block(self, number):
        part = self.wave[number * self.size : (number + 1) * self.size]
        self.callback(np.pad(part, (0, self.size - len(part)))[:, None], self.size, None, None)

class OutputStream(_Stream):
    heard = []
    def block(self, number):
        block = np.zeros((self.size, 1), np.float32)
        self.callback(block, self.size, None, None)
        self.heard.append(block[:, 0].copy())
        if number * self.size > float(os.environ["CALL_SEC"]) * self.rate:
            soundfile.write(os.environ["SPEAKER"], np.concatenate(self.heard), self.rate)
            os._exit(0)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (EMBEDDED / "config.json").is_file(), reason="no embedded model in this checkout"),
]


@pytest.fixture(scope="module")
def client_dir(tmp_path_factory):
    """moshi and what it imports beside what is here already, where nothing else sees it."""
    folder = tmp_path_factory.mktemp("moshi")
    command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "moshi", "einops"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the moshi package cannot be installed: {error}")
    (folder / "sounddevice.py").write_text(SOUND_CARD)
    return folder


def test_kyutais_client_has_a_conversation(client_dir, served, tmp_path):
    speaker = tmp_path / "speaker.wav"
    environment = os.environ | {
        "PYTHONPATH": str(client_dir), "MICROPHONE": str(EXAMPLES / "hello.wav"), "SPEAKER": str(speaker),
        "CALL_SEC": str(CALL_SEC), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "moshi.client", "--url", served]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr:
        pytest.skip(f"the moshi package does not run beside these versions: {done.stderr.strip().splitlines()[-1]}")
    said = set(done.stdout.split())  # any of the ways in which it greets
    assert said & {"hello", "hi", "name", "help", "fine", "model"}, (done.stdout, done.stderr)
    assert "Lost connection" not in done.stderr
    wave, rate_hz = soundfile.read(speaker)
    assert rate_hz == 24000 and np.abs(wave).max() > 0.05
