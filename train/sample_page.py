"""Sampled calls as pages: one for each step with everything inside it, and one over all steps of a run."""

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from mmspeech.frames import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from PIL.Image import Image

    from train.sample_figure import CallFigure
    from train.samples import SampledCall

PAGE = "index.html"
SHOWN_PX = 320

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#6b7280;--line:#e5e7eb;--card:#fff;--page:#f8fafc;--model:#0f766e}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--card:#1f2937;--page:#111827;
--model:#5eead4}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;max-width:1200px;
padding:1rem}
h1{font-size:1.3rem}h2{font-size:1rem;margin:0 0 .6rem}a{color:var(--model)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem;margin:1rem 0}
.top{display:flex;gap:1rem;flex-wrap:wrap}.top .talk{flex:1;min-width:18rem}
.seen img{max-width:220px;max-height:220px;border-radius:8px;display:block}
figcaption,small,.who{color:var(--soft);font-size:.8rem}figure{margin:0 0 .5rem}
audio{width:100%}.line{display:flex;gap:.6rem;margin:.25rem 0}.who{flex:0 0 4.5rem;text-align:right;padding-top:.15rem}
.word{cursor:pointer;border-radius:4px;padding:0 .12rem}.word:hover{background:var(--line)}
.word.now{background:#fde047;color:#111}.model .word{color:var(--model)}.model .word.now{color:#111}
.chart{position:relative;overflow-x:auto;background:#fff;border-radius:8px;margin-top:.8rem}
.chart div{position:relative;min-width:700px}.chart img{width:100%;display:block}
.chart i{position:absolute;top:0;bottom:0;width:2px;background:#ef4444;left:0;pointer-events:none}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:.8rem}.grid img{width:100%}
"""

# The sound moves a line over the picture and lights up words; a click on either moves the sound.
_SCRIPT = """
for(const s of document.querySelectorAll('section[data-sec]')){
const a=s.querySelector('audio'),c=s.querySelector('.chart div'),i=c.querySelector('i');
const w=[...s.querySelectorAll('.word')];
const d=+s.dataset.sec,l=+c.dataset.left,r=+c.dataset.right;
const show=()=>{i.style.left=100*(l+(r-l)*Math.min(1,a.currentTime/d))+'%';
for(const x of w)x.classList.toggle('now',a.currentTime>=+x.dataset.from&&a.currentTime<+x.dataset.to);
if(!a.paused)requestAnimationFrame(show)};
a.onplay=a.onseeked=a.onpause=show;show();
for(const x of w)x.onclick=()=>{a.currentTime=+x.dataset.from;a.play()};
c.onclick=e=>{const b=c.getBoundingClientRect(),p=((e.clientX-b.left)/b.width-l)/(r-l);
if(p>=0&&p<=1)a.currentTime=p*d}}
"""


def write_page(folder: Path, calls: "dict[str, tuple[SampledCall, CallFigure]]") -> Path:
    """FOLDER/index.html: sound, pictures, words with their times and the gates of each call. It refers to no other
    file, so that it can be sent to somebody; the calls' own files are named in it."""
    title = f"{folder.parent.parent.name} · {_step_name(folder)}"
    sections = [_section(name, call, figure) for name, (call, figure) in calls.items()]
    body = f'<h1>{html.escape(title)}</h1><p><a href="../{PAGE}">all steps of this run</a></p>{"".join(sections)}'
    return _write(folder / PAGE, title, f"{body}<script>{_SCRIPT}</script>")


def write_contents(samples_dir: Path) -> Path:
    """SAMPLES/index.html: every step, newest first, with the picture of its calls."""
    sections = []
    for folder in sorted(samples_dir.glob("step_*"), reverse=True):
        images = "".join(
            f'<a href="{folder.name}/{PAGE}"><img loading="lazy" alt="" src="{folder.name}/{image.name}"></a>'
            for image in sorted(folder.glob("*.png"))
            if "_seen" not in image.name
        )
        link = f'<a href="{folder.name}/{PAGE}">{_step_name(folder)}</a>'
        sections.append(f'<section><h2>{link}</h2><div class="grid">{images}</div></section>')
    title = f"{samples_dir.parent.name} · samples"
    return _write(samples_dir / PAGE, title, f"<h1>{html.escape(title)}</h1>{''.join(sections)}")


def _section(name: str, call: "SampledCall", figure: "CallFigure") -> str:
    duration_sec = call.wave.shape[1] / SAMPLE_RATE_HZ
    heard = [(word.text, word.start_sec, word.end_sec) for word in call.heard]
    expected = [(word.text, word.start_sec, word.end_sec) for word in call.expected]
    starts = [word.start_sec for word in call.words] + [duration_sec]
    said = [
        (word.text, word.start_sec, min(following, word.start_sec + 0.6))
        for word, following in zip(call.words, starts[1:], strict=True)
    ]
    seen = "".join(
        f'<figure class="seen"><img alt="what the model sees" src="{_picture(picture)}">'
        f"<figcaption>seen from {start_sec:.2f} s on</figcaption></figure>"
        for picture, start_sec in call.pictures
    )
    return (
        f'<section data-sec="{duration_sec:.3f}"><h2>{html.escape(call.id)}</h2><div class="top"><div>{seen}</div>'
        f'<div class="talk"><audio controls preload="auto" src="{_sound(call)}"></audio>'
        f"<small>left ear the model, right ear the user; exact: {name}.wav</small>"
        f"{_line('user', heard)}{_line('model', said)}{_line('expected', expected)}</div></div>"
        f'<div class="chart"><div data-left="{figure.left:.5f}" data-right="{figure.right:.5f}">'
        f'<img alt="words and gates over time" src="{_data("image/png", figure.png)}"><i></i></div></div></section>'
    )


def _line(who: str, words: list[tuple[str, float, float]]) -> str:
    shown = " ".join(
        f'<span class="word" title="{start:.2f} s" data-from="{start:.3f}" data-to="{end:.3f}">'
        f"{html.escape(text)}</span>"
        for text, start, end in words
        if text
    )
    shown = shown or "<small>nothing</small>"
    return f'<div class="line {who}"><span class="who">{who}</span><span>{shown}</span></div>'


def _sound(call: "SampledCall") -> str:
    """Compressed: a tenth of the wav, and every browser plays it."""
    target = io.BytesIO()
    soundfile.write(target, call.wave.clamp(-1, 1).T.numpy(), SAMPLE_RATE_HZ, format="MP3")
    return _data("audio/mpeg", target.getvalue())


def _picture(picture: "Image") -> str:
    small, target = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SHOWN_PX, SHOWN_PX))
    small.save(target, "PNG")
    return _data("image/png", target.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _step_name(folder: Path) -> str:
    return f"step {int(folder.name.removeprefix('step_')):,}"


def _write(path: Path, title: str, body: str) -> Path:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>', encoding="utf-8")
    return path
