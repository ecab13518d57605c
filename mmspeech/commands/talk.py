"""`mmspeech talk`: a recorded question through the model, frame by frame, as if it were a call."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from torch import Tensor

from mmspeech.audio.waveform import in_frames, read_audio, write_wav
from mmspeech.commands.common import check_device, check_output, followed, opened_model
from mmspeech.frames import FRAME_SAMPLES, frames_to_seconds, samples_to_seconds
from mmspeech.serve.eyes import FrameCounts
from mmspeech.serve.prompt import Prompt
from mmspeech.serve.session import ReplyWatch, Session, Transcript

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle
    from mmspeech.vision.timeline import Timeline

PLOT_SUFFIXES = (".png", ".pdf", ".svg")
_BLIND, _SEEING = (120, 120, 120), (80, 220, 255)  # colours of words with a closed and an open gate


@dataclass(frozen=True)
class TalkOptions:
    """The options of the command, as given."""

    audio: Path
    out: Path
    image: Path | None
    video: Path | None
    fps: float
    voice: Path | None
    role: str | None
    model: str | None
    stereo: bool
    seed: int
    greedy: bool
    max_sec: float
    as_json: bool
    plot: Path | None
    device: str
    quantize: str | None
    tensor_parallel: int


@dataclass
class Talk:
    """A finished call. question, reply: [N] of equal length, frame by frame; gates and step_sec: one per frame.
    pictures: what became of those shown."""

    question: Tensor
    reply: Tensor
    transcript: Transcript
    gates: list[float] = field(default_factory=list)
    step_sec: list[float] = field(default_factory=list)
    pictures: FrameCounts = field(default_factory=FrameCounts)

    def summary(self, model: str) -> dict[str, object]:
        """What --json prints."""
        step_ms = np.asarray(self.step_sec) * 1000
        return {
            "text": self.transcript.text,
            "words": [_rounded(asdict(word)) for word in self.transcript.words],
            "frames": len(self.step_sec),
            "rtf": round(sum(self.step_sec) / frames_to_seconds(len(self.step_sec)), 4),
            "step_ms": {name: round(float(np.percentile(step_ms, q)), 2) for name, q in (("p50", 50), ("p99", 99))},
            "pictures": asdict(self.pictures),
            "model": model,
        }


def run_talk(options: TalkOptions) -> None:
    """The command: everything that can be wrong with the input is found before the model is loaded."""
    if followed(device=options.device, tensor_parallel=options.tensor_parallel):
        return
    check_output(options.out, (".wav",))
    if options.plot is not None:
        check_output(options.plot, PLOT_SUFFIXES)
    check_device(options.device)
    question = read_audio(options.audio)[0]
    prompt = None
    if options.voice is not None or options.role is not None:
        prompt = Prompt(options.role, options.voice)
    picture = None
    if options.image is not None:
        from mmspeech.vision.image import load_image

        picture = load_image(options.image)
    timeline = None
    if options.video is not None:
        from mmspeech.vision.timeline import Timeline

        timeline = Timeline(options.video, fps=options.fps)
    console = Console(stderr=True)
    how = {"device": options.device, "tensor_parallel": options.tensor_parallel, "quantize": options.quantize}
    with opened_model(options.model, **how) as bundle:
        sampling = bundle.config.generation.greedy() if options.greedy else None
        session = Session(bundle, sampling, options.seed, picture, prompt=prompt)
        talk = listen_and_reply(session, question, max_sec=options.max_sec, console=console, timeline=timeline)
    write_wav(options.out, torch.stack([talk.reply, talk.question]) if options.stereo else talk.reply)
    if options.plot is not None:
        from mmspeech.commands.plot import plot_talk

        plot_talk(talk, options.plot)
    for problem in timeline.problems if timeline is not None else ():
        console.print(f"dropped: {problem}", highlight=False, markup=False, soft_wrap=True)
    _tell(talk, bundle, options, console)


def listen_and_reply(
    session: Session, question: Tensor, *, max_sec: float, console: Console, timeline: "Timeline | None" = None
) -> Talk:
    """Feed question [N] frame by frame, then silence until the reply has ended, showing words as they come.

    Pictures of `timeline` are seen from their times on; while some are still to come, the call lasts up to `max_sec`
    after the question.
    """
    frames = in_frames(question)
    watch = ReplyWatch(question_sec=samples_to_seconds(len(question)), max_sec=max_sec)
    talk = Talk(question, question, Transcript())
    heard: list[Tensor] = []
    longest_sec = samples_to_seconds(len(question)) + max_sec
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[clock]}"), console=console
    )
    bar = progress.add_task("listening", total=len(frames), clock="")
    with Live(progress, console=console, refresh_per_second=12, transient=True) as live:
        ended = False
        while not ended:
            index = len(heard)
            began = time.perf_counter()
            for at_sec, picture in () if timeline is None else timeline.due(frames_to_seconds(index)):
                session.see(picture, at_sec)
            out = session.step(frames[index] if index < len(frames) else torch.zeros(FRAME_SAMPLES))
            talk.step_sec.append(time.perf_counter() - began)
            heard.append(out.pcm)
            talk.gates.append(out.gate)
            if out.text is not None:
                talk.transcript.add(out.text, start_sec=out.start_sec, gate=out.gate)
                live.update(Group(coloured_words(talk.transcript), progress))
            ended = watch.add(out.pcm, has_text=out.text is not None)
            now_sec = frames_to_seconds(index + 1)
            ended = ended and (timeline is None or now_sec >= min(timeline.duration_sec, longest_sec))
            clock = f"{now_sec:.1f} s"
            description = "listening" if index < len(frames) else "replying"
            progress.update(bar, completed=min(index + 1, len(frames)), description=description, clock=clock)
    talk.reply, talk.pictures = torch.cat(heard), session.frames
    talk.question = torch.nn.functional.pad(question, (0, len(talk.reply) - len(question)))
    return talk


def coloured_words(transcript: Transcript) -> Text:
    """The words, grey where the model did not look, bright where it did."""
    text = Text()
    for word in transcript.words:
        red, green, blue = (
            round(a + (b - a) * min(1.0, max(0.0, word.gate))) for a, b in zip(_BLIND, _SEEING, strict=True)
        )
        text.append(f"{word.text} ", style=f"rgb({red},{green},{blue})")
    return text


def _tell(talk: Talk, bundle: "Bundle", options: TalkOptions, console: Console) -> None:
    summary = talk.summary(str(bundle.path) if options.model is None else options.model)
    console.print(coloured_words(talk.transcript) if talk.transcript.words else Text("(it said nothing)", "dim"))
    written = [options.out] if options.plot is None else [options.out, options.plot]
    console.print(
        f"{', '.join(map(str, written))}: {samples_to_seconds(len(talk.reply)):.1f} s, "
        f"{summary['step_ms']['p50']:.0f} ms per 80 ms frame (p99 {summary['step_ms']['p99']:.0f}), "
        f"real-time factor {summary['rtf']:.2f}",
        highlight=False,
        soft_wrap=True,
    )
    if options.as_json:
        print(json.dumps(summary))


def _rounded(word: dict[str, object]) -> dict[str, object]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in word.items()}
