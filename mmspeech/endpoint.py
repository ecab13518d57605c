"""A server that speaks OpenAI's protocol: judges, writers of dialogues and voices are asked through it.

The key, where one is needed, is in the environment variable OPENAI_API_KEY.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from mmspeech.config import ConfigError

TRIES = 4
TIMEOUT_SEC = 120.0

Answer = TypeVar("Answer")


def is_address(address: str) -> bool:
    """Whether there is a host to ask; a port that is no number, and spaces, are not for urllib to find out."""
    try:
        parts = urllib.parse.urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in address
    except ValueError:
        return False


def split_address(name: str) -> tuple[str, str] | None:
    """ "http://host/v1#model" -> address and model; None for what is no such name."""
    address, _, model = name.partition("#")
    return (address.rstrip("/"), model) if is_address(address) and model else None


def post(url: str, body: dict[str, Any], read: Callable[[bytes], Answer], *, wait_sec: float = 1.0) -> Answer:
    """What `read` makes of the answer to `body` (sent as JSON). A busy server, and an answer that `read` cannot use
    (ValueError, KeyError, IndexError, TypeError), are asked again, after `wait_sec` and then twice as long each time.

    ConfigError when it refuses (400 to 499), or after TRIES tries.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    for number in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as response:
                return read(response.read())
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise ConfigError(f"{url}: refused ({error.code} {error.reason})") from error
            problem: Exception = error
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            problem = error
        if number + 1 < TRIES:
            time.sleep(wait_sec * 2**number)
    raise ConfigError(f"{url}: no answer in {TRIES} tries ({type(problem).__name__}: {problem})")


def chat(address: str, body: dict[str, Any], *, wait_sec: float = 1.0) -> str:
    """What a chat model says to body["messages"]."""

    def said(answer: bytes) -> str:
        return str(json.loads(answer)["choices"][0]["message"]["content"] or "")

    return post(f"{address}/chat/completions", body, said, wait_sec=wait_sec)
