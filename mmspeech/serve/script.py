"""What a call is made to write, say and hear in its next steps, in place of what it would."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspeech.serve.prompt import PromptFrames
from mmspeech.tokens.streams import StreamLayout

DRAWN = -1


@dataclass
class Cue:
    """One step of a call. text_id, own [K]: in place of what the model would draw (DRAWN: it does). user [K]: heard in
    place of the caller (None: the caller is). told: the text was given by `tell`."""

    own: list[int]
    text_id: int = DRAWN
    user: list[int] | None = None
    told: bool = False


class Script:
    """The cues of one call, which begins with `prompt`. `next` is for the thread that steps; `tell` for any thread.

    Frames are laid with the delays of their streams: a frame's codes are drawn in several steps.
    """

    def __init__(self, layout: StreamLayout, prompt: PromptFrames | None = None):
        self._num_codebooks = layout.num_codebooks
        self._text_delay, self._own_delays = layout.delays[0], layout.delays[layout.own]
        self._cues: deque[Cue] = deque()
        self._inbox: deque[tuple[Sequence[int], list[int] | None]] = deque()
        self._free = 0  # the first of the cues that has no text behind it
        # Of the steps whose text is on its way out, the oldest first.
        waiting = layout.max_delay - self._text_delay + 1
        self._told: deque[bool] = deque([False] * waiting, maxlen=waiting)
        self.prompt_steps = 0 if prompt is None else len(prompt.text_ids)
        self._prompt_left = self.prompt_steps
        if prompt is not None:
            for frame, user in enumerate(prompt.user):
                self._cue(frame).user = user
            self._lay(0, prompt.text_ids, prompt.own, told=False)

    @property
    def is_prompting(self) -> bool:
        """Whether steps of the prompt are still to come."""
        return self._prompt_left > 0

    @property
    def told(self) -> bool:
        """Whether the text of the frame that the latest step gave was told."""
        return self._told[0]

    def tell(self, text_ids: Sequence[int], *, own: list[int] | None) -> None:
        """Lay text behind what is told already; with the codes `own` [K] in each of its frames (None: drawn)."""
        self._inbox.append((text_ids, own))

    def next(self) -> Cue | None:
        """The cue of the next step, None where all is drawn."""
        while self._inbox:
            text_ids, own = self._inbox.popleft()
            codes = None if own is None else [own] * len(text_ids)
            self._lay(self._free - self._text_delay, text_ids, codes, told=True)
        cue = self._cues.popleft() if self._cues else None
        self._told.append(cue is not None and cue.told)
        self._free = max(0, self._free - 1)
        self._prompt_left = max(0, self._prompt_left - 1)
        return cue

    def _lay(self, first: int, text_ids: Sequence[int], own: Sequence[list[int]] | None, *, told: bool) -> None:
        """Frames from `first` on, counted from the one whose undelayed codes the next step draws. Codes [T, K] that
        were drawn before stay as they are."""
        for frame, text_id in enumerate(text_ids, start=first):
            cue = self._cue(frame + self._text_delay)
            cue.text_id, cue.told = text_id, told
        for frame, codes in enumerate([] if own is None else own, start=first):
            for k, delay in enumerate(self._own_delays):
                if frame + delay >= 0:
                    self._cue(frame + delay).own[k] = codes[k]
        self._free = first + self._text_delay + len(text_ids)

    def _cue(self, index: int) -> Cue:
        while len(self._cues) <= index:
            self._cues.append(Cue([DRAWN] * self._num_codebooks))
        return self._cues[index]


def rehearsed(
    cues: Sequence[Cue | None], codes: Tensor, text_ids: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The callers' codes [n, K] and forced text [n] (or None) with the cues of n calls laid over them, and the models'
    own codes [n, K]; all as they are, and None, where no call has a cue."""
    due = {row: cue for row, cue in enumerate(cues) if cue is not None}
    if not due:
        return codes, text_ids, None
    codes = codes.clone()
    own_codes = torch.full_like(codes, DRAWN)
    text_ids = torch.full_like(codes[:, 0], DRAWN) if text_ids is None else text_ids.clone()
    for row, cue in due.items():
        own_codes[row] = torch.tensor(cue.own)
        if cue.text_id != DRAWN:
            text_ids[row] = cue.text_id
        if cue.user is not None:
            codes[row] = torch.tensor(cue.user)
    return codes, text_ids, own_codes
