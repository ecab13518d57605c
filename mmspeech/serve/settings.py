"""What decides on a server: who may come, how many, how much, how long."""

from pathlib import Path

from pydantic import Field

from mmspeech.config import StrictModel


class Manner(StrictModel):
    """How a server's calls begin, and what they may use; nothing by default. `role`: what the model is, in words, where
    a caller does not say it. `voice`: a recording of the voice to speak with. `tools`: a Python file that makes
    `tools`, a mmspeech.serve.tools.Tools; the server runs it.
    """

    role: str | None = None
    voice: Path | None = None
    tools: Path | None = None


class ServeConfig(Manner):
    """`places`: calls at once; `queue`: callers who may wait for one. `token`: what a caller must know (None: nothing).

    `origins`: pages of other sites that may call, "*" all of them; the server's own page always may. Limits: the file
    of a picture `picture_bytes`, any other message `message_bytes`; a call ends after `call_sec`, or `idle_sec` without
    sound. `handshake_sec`: how long a picture is waited for before the client is told to speak. `told_characters`: of a
    role, and of what is told but not yet taken in. `record`: a folder for calls (None: nothing is kept).
    """

    places: int = Field(8, ge=1)
    queue: int = Field(32, ge=0)
    per_address: int = Field(8, ge=1)
    token: str | None = None
    origins: tuple[str, ...] = ()
    message_bytes: int = Field(64 * 1024, ge=4096)
    picture_bytes: int = Field(15 * 1024 * 1024, ge=4096)
    picture_pixels: int = Field(50_000_000, ge=1)
    call_sec: float = Field(1800.0, gt=0)
    idle_sec: float = Field(30.0, gt=0)
    handshake_sec: float = Field(1.0, ge=0)
    top_k_limit: int = Field(250, ge=1)
    told_characters: int = Field(500, ge=1)
    record: Path | None = None
