"""A mark for tests that need voices: skips them, saying what to install, where the synthesisers are not there."""

import pytest

from data_prep.tts import require_synthesisers

try:
    require_synthesisers()
    MISSING = ""
except FileNotFoundError as error:
    MISSING = str(error)
needs_speech = pytest.mark.skipif(bool(MISSING), reason=MISSING)
