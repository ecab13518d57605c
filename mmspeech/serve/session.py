"""One call, and what can be told from its frames: words with their times, and when the reply has ended."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.config import GenerationConfig
from mmspeech.frames import FRAME_RATE_HZ
from mmspeech.serve.engine import CallBatch, CallOut
from mmspeech.serve.eyes import FrameCounts
from mmspeech.serve.prompt import Prompt
from mmspeech.serve.tools import ToolCalls, Tools
from mmspeech.vision.image import load_image

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle
    from mmspeech.serve.eyes import Picture

_SOUND_RMS = 0.01  # -40 dB


@dataclass
class StepOut:
    """One 80 ms step of a call.

    pcm: [1920] float32, to be played now. text: the text piece of the model frame in it, None for silence or padding.
    gate: 0..1, how far the eyes were open when that piece was chosen. frame: index of the model frame (-1 while the
    delayed streams fill). start_sec: when the sound of that frame begins, on the clock of the call. heard: [1920], what
    the caller said in this step. told: a piece of text that was put there (`tell`) in place of the model's own.
    """

    pcm: Tensor
    text: str | None
    gate: float
    frame: int
    start_sec: float
    heard: Tensor
    told: str | None = None


class Session:
    """One full-duplex call: give it 1920 samples of the caller at a time, play what it returns.

    `picture` is seen from the start (ImageError when it cannot be read); `see` shows others later. `prompt` gives the
    model a voice and a role before the call begins; `tools` are called when the reply matches their patterns.
    """

    def __init__(
        self,
        bundle: "Bundle",
        sampling: GenerationConfig | None = None,
        seed: int = 0,
        picture: "Picture | None" = None,
        *,
        prompt: Prompt | None = None,
        tools: Tools | None = None,
    ):
        self._calls = CallBatch(bundle, batch_size=1, sampling=sampling, seed=seed)
        self._text = TextReader(bundle)
        self._tools = None if tools is None else ToolCalls(tools)
        if prompt is not None:
            self._calls.begin(0, sampling=sampling, seed=seed, prompt=prompt.frames(bundle))
            nobody = torch.full((1, bundle.codec.num_codebooks), -1, device=self._calls.device)
            while self._calls.is_prompting(0):
                self._calls.think(nobody)
        if picture is not None:
            self.see(load_image(picture))

    def see(self, picture: "Picture | None", at_sec: float | None = None) -> None:
        """Show a picture: PIL, or the bytes of a file. It enters at the first step at or after `at_sec`, in seconds of
        the call (None: the next step), and joins the last ones that the model remembers. None: see nothing any more.

        At most one picture waits, the newest; what comes too late, twice or broken is left out and counted in `frames`.
        SightError for a model without eyes.
        """
        if picture is None and at_sec is not None:
            raise ValueError(f"nothing at {at_sec} s: there is no picture to wait for; call forget() when it is time")
        self._calls.see([picture], at_sec=at_sec)

    def forget(self) -> None:
        """See nothing from the next step on, until something is shown again."""
        self._calls.forget()

    @property
    def frames(self) -> FrameCounts:
        """How many pictures were seen, dropped and broken so far."""
        return self._calls.frame_counts[0]

    def step(self, pcm: Tensor) -> StepOut:
        """Advance by one frame: pcm [1920] float at 24 kHz, what the caller said in these 80 ms."""
        for result in () if self._tools is None else self._tools.results():
            self._calls.tell(result, max_pieces=self._tools.max_pieces)
        out = self._text.step_of(self._calls.step(pcm[None]), 0, heard=pcm)
        if self._tools is not None:
            self._tools.hear(out.text)
        return out

    def tell(self, text: str, *, silent: bool = False) -> int:
        """Let the model know something: `text` becomes part of what it writes to itself, one piece per frame from the
        next step on, and is reported as `told`, not as spoken words. `silent`: it says nothing meanwhile. May be called
        from any thread. Returns how many frames that takes: 0 where the tokenizer has none of its letters."""
        return self._calls.tell(text, silent=silent)


class TextReader:
    """Text ids -> pieces; padding and control ids are silence (None), as are ids the tokenizer does not have."""

    def __init__(self, bundle: "Bundle"):
        self._tokenizer = bundle.tokenizer

    def step_of(self, result: CallOut, row: int, *, heard: Tensor) -> StepOut:
        """What a step of a batch is to one of its calls, which said `heard` [1920]."""
        wave, start_sec = result.wave[row], result.start_sec[row]
        frame = result.frames[row]
        if result.out is None or frame < 0:
            return StepOut(wave, None, 0.0, -1, start_sec, heard)
        text, gate = self.piece(int(result.out.text_ids[row])), float(result.out.gate[row])
        if result.told[row]:
            return StepOut(wave, None, gate, frame, start_sec, heard, told=text)
        return StepOut(wave, text, gate, frame, start_sec, heard)

    def piece(self, text_id: int) -> str | None:
        """The piece of an id, or None when it is not text."""
        return (self._tokenizer.piece(text_id) or None) if 0 <= text_id < self._tokenizer.vocab_size else None


@dataclass
class SpokenWord:
    """A word of the reply; `gate` is the mean over its pieces."""

    text: str
    start_sec: float
    gate: float


@dataclass
class Transcript:
    """Pieces in, words out. A piece that starts with a space begins a new word."""

    words: list[SpokenWord] = field(default_factory=list)
    _gates: list[float] = field(default_factory=list)

    def add(self, piece: str, *, start_sec: float, gate: float) -> None:
        """Take in the next piece."""
        waiting = bool(self.words) and not self.words[-1].text  # a lone space came before
        if not self.words or (piece.startswith(" ") and not waiting):
            self.words.append(SpokenWord(piece.strip(), start_sec, gate))
            self._gates = [gate]
            return
        word = self.words[-1]
        word.text += piece.strip()
        self._gates.append(gate)
        word.gate = sum(self._gates) / len(self._gates)

    @property
    def text(self) -> str:
        """All words, with single spaces."""
        return " ".join(word.text for word in self.words if word.text)


class ReplyWatch:
    """Tells when a reply has ended.

    That is: after the end of the question the model spoke, and then was quiet for `quiet_sec` (or, if something still
    hums, said no word for twice as long); or it said nothing for `patience_sec`; or `max_sec` have passed. Words said
    before the question ended do not count: they were no answer to it.
    """

    def __init__(
        self, *, question_sec: float, max_sec: float = 15.0, quiet_sec: float = 1.5, patience_sec: float = 4.0
    ):
        self._question_frames = round(question_sec * FRAME_RATE_HZ)
        self._max_frames = round(max_sec * FRAME_RATE_HZ)
        self._quiet_frames = round(quiet_sec * FRAME_RATE_HZ)
        self._patience_frames = round(patience_sec * FRAME_RATE_HZ)
        self._frames = 0
        self._since_word = self._since_sound = 0
        self._spoke = False

    def add(self, pcm: Tensor, *, has_text: bool) -> bool:
        """Take in one frame of the reply (pcm [1920]); True when the reply has ended with it."""
        self._frames += 1
        self._since_word = 0 if has_text else self._since_word + 1
        loud = float(torch.sqrt(pcm.square().mean())) > _SOUND_RMS
        self._since_sound = 0 if loud or has_text else self._since_sound + 1
        waited = self._frames - self._question_frames
        self._spoke = self._spoke or (has_text and waited >= 0)
        if waited < 0:
            return False
        if waited >= self._max_frames:
            return True
        if not self._spoke:
            return waited >= self._patience_frames
        return self._since_sound >= self._quiet_frames or self._since_word >= 2 * self._quiet_frames
