"""Language models that write the lines of dialogues: a transformers model by name or directory, or an endpoint."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pydantic import Field

from mmspeech.config import ConfigError, StrictModel
from mmspeech.endpoint import chat, split_address

Chat = list[dict[str, str]]  # messages with "role" (system, user, assistant) and "content"
AT_ONCE = 8  # questions to an endpoint
TRANSFORMERS = "transformers:"
_PREFIX = re.compile(r"^\s*(?:[A-Za-z ]{2,20}:)\s*")


class WriterSettings(StrictModel):
    """How lines are drawn; temperature 0 is the likeliest."""

    temperature: float = Field(0.9, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(120, gt=0)


class Writer(Protocol):
    """Says the next line of each chat. The same chats with the same seeds give the same lines (of an endpoint: if its
    server keeps to the seed)."""

    def lines(self, chats: Sequence[Chat], *, seeds: Sequence[int]) -> list[str]: ...


def open_writer(name: str, settings: WriterSettings, *, device: str = "cpu") -> Writer:
    """The writer that `--writer` names. Raises ConfigError."""
    if name.startswith(TRANSFORMERS):
        return TransformersWriter(name.removeprefix(TRANSFORMERS), settings, device)
    if (served := split_address(name)) is not None:
        return ServedWriter(*served, settings)
    raise ConfigError(f"--writer {name}: expected transformers:NAME_OR_DIR or http(s)://host/v1#model-name")


class TransformersWriter:
    """A causal language model of transformers. One without a chat template is given the chat as plain text."""

    def __init__(self, name: str, settings: WriterSettings, device: str = "cpu"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
            self._model = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto").to(torch.device(device)).eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--writer {TRANSFORMERS}{name}: cannot be loaded ({reason})") from error
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._settings = settings

    def lines(self, chats: Sequence[Chat], *, seeds: Sequence[int]) -> list[str]:
        import torch

        batch = self._tokenizer([self._text(one) for one in chats], return_tensors="pt", padding=True)
        batch = batch.to(self._model.device)
        batch.pop("token_type_ids", None)
        drawn = {"do_sample": False}
        if self._settings.temperature > 0:
            drawn = {"do_sample": True, "temperature": self._settings.temperature, "top_p": self._settings.top_p}
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(list(seeds)).encode()).digest()[:7], "big"))
        with torch.no_grad():
            ids = self._model.generate(
                **batch,
                **drawn,
                max_new_tokens=self._settings.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        said = ids[:, batch["input_ids"].shape[1] :]
        return self._tokenizer.batch_decode(said, skip_special_tokens=True)

    def _text(self, messages: Chat) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            told = "\n".join(f"{message['role'].capitalize()}: {message['content'].strip()}" for message in messages)
            return f"{told}\nAssistant:"
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise ConfigError(f"the chat template of the model refuses the chat ({error})") from error
            first = {"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            return self._text([first, *messages[2:]])


class ServedWriter:
    """A model behind an OpenAI-compatible address."""

    def __init__(self, address: str, model: str, settings: WriterSettings):
        self._address, self._model, self._settings = address, model, settings

    def lines(self, chats: Sequence[Chat], *, seeds: Sequence[int]) -> list[str]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(self._line, chats, seeds))

    def _line(self, messages: Chat, seed: int) -> str:
        drawn = self._settings
        body = {"model": self._model, "messages": messages, "seed": seed, "temperature": drawn.temperature}
        return chat(self._address, body | {"top_p": drawn.top_p, "max_tokens": drawn.max_tokens})


class KeptLines:
    """A Writer that asks another one only what a file does not hold yet: a killed run, or one with other filters, need
    not pay twice. A batch of which something is missing is asked whole, for a model's draws belong to a batch."""

    def __init__(self, opened: Callable[[], Writer], file: Path, *, identity: str):
        self._open, self._file, self._identity = opened, file, identity
        self._kept: dict[str, str] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                one = json.loads(line)
                self._kept[one["key"]] = one["line"]
            except (ValueError, KeyError, TypeError):  # torn when the run was killed
                continue

    def lines(self, chats: Sequence[Chat], *, seeds: Sequence[int]) -> list[str]:
        keys = [self._key(messages, seed) for messages, seed in zip(chats, seeds, strict=True)]
        if any(key not in self._kept for key in keys):
            said = self._open().lines(chats, seeds=seeds)
            new = [one for one in zip(keys, said, strict=True) if one[0] not in self._kept]
            self._kept |= dict(new)
            with self._file.open("a", encoding="utf-8") as opened:
                opened.write("\n")  # ends a torn line
                opened.writelines(json.dumps({"key": key, "line": line}) + "\n" for key, line in new)
        return [self._kept[key] for key in keys]

    def _key(self, messages: Chat, seed: int) -> str:
        return hashlib.sha256(json.dumps([self._identity, messages, seed]).encode()).hexdigest()[:32]


def clean_line(text: str) -> str:
    """What is spoken of a model's answer: its first paragraph, without the speaker's name and without quotes."""
    paragraph = next((part for part in text.strip().splitlines() if part.strip()), "")
    return _PREFIX.sub("", paragraph).strip().strip("\"'\u201c\u201d").strip()
