"""The verbs of the chain: from what people have to what training needs."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.options import Data, Jobs, OutDir, Ray, Seed, Shard, how_of, shard_of
from data_prep.steps import Tally
from mmspeech.config import ConfigError, load_config

app = typer.Typer()

Aligner = Annotated[str | None, typer.Option(help="sphinx, ctc:NAME_OR_DIR or whisper:NAME_OR_DIR.")]
Device = Annotated[str, typer.Option(help="cpu, cuda ...")]


def tell(verb: str, out: Path, tally: Tally) -> None:
    """What came of a step; exit code 1 when something failed."""
    typer.echo(f"{out}: {verb}: {tally.line()}")
    if tally.failed:
        typer.echo(
            f"{tally.failed} failed; {out / 'manifest.err'} says why, and the same command tries them again", err=True
        )
        raise typer.Exit(1)


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="Which set: llava, coco, vqav2 ...; list shows all.")],
    data: Annotated[str | None, typer.Option(help="Its folder or file, or hub:OWNER/NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
    media: Annotated[
        Path | None, typer.Option(help="Folder of its pictures, clips or sounds (default: --data).")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    licence: Annotated[str | None, typer.Option(help="Told of every record, in place of the set's own.")] = None,
    shard: Shard = "0/1",
) -> None:
    """Make records of a public set."""
    from data_prep.import_sets import import_set
    from data_prep.importers import NAMES, describe

    if name == "list":
        for one in NAMES:
            typer.echo(f"{one:16} {describe(one)}")
        return
    if data is None or out is None:
        raise ConfigError("import needs --data (a folder, a file, or hub:OWNER/NAME) and --out")
    told = {"media": media, "split": split, "licence": licence, "shard": shard_of(shard)}
    tell("import", out, import_set(name, data, out, **told))


@app.command()
def dialogue(
    data: Data,
    out: OutDir,
    writer: Annotated[str, typer.Option(help="transformers:NAME_OR_DIR or http(s)://host/v1#model-name.")],
    templates: Annotated[
        Path | None, typer.Option(help="How dialogues are written (default: data_prep/templates/dialogue.yaml).")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Only these kinds, with commas between.")] = "",
    languages: Annotated[str, typer.Option(help="Only these languages, with commas between.")] = "",
    temperature: Annotated[float, typer.Option(min=0)] = 0.9,
    cache: Annotated[Path | None, typer.Option(help="Where written lines are kept (default: OUT/lines).")] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    jobs: Jobs = 1,
    shard: Shard = "0/1",
    ray: Ray = None,
) -> None:
    """Let a language model write dialogues about what records say of pictures and clips."""
    from data_prep.dialogue import write_dialogues
    from data_prep.report import dropped_examples
    from data_prep.templates import load_templates
    from data_prep.writers import WriterSettings

    wanted = load_templates(templates, languages=_names(languages), kinds=_names(kinds))
    tally = write_dialogues(
        data,
        out,
        writer=writer,
        templates=wanted,
        drawn=WriterSettings(temperature=temperature),
        seed=seed,
        how=how_of(shard, jobs, ray),
        cache=cache,
        device=device,
    )
    for line in dropped_examples(out):
        typer.echo(line)
    tell("dialogue", out, tally)


@app.command()
def speak(
    data: Annotated[Path, typer.Option(help="Records with turns, or the folder of `scenes` or `clips`.")],
    out: OutDir,
    voices: Annotated[
        str,
        typer.Option(help="flite, espeak, flite+espeak, transformers:NAME, command:CMD or http(s)://host/v1#model."),
    ] = "flite+espeak",
    names: Annotated[str, typer.Option(help="The callers' voices, with commas between (default: all there are).")] = "",
    model_voice: Annotated[str | None, typer.Option(help="The model's own voice.")] = None,
    aligner: Aligner = None,
    manners: Annotated[
        Path | None, typer.Option(help="When people speak: YAML of data_prep.conversation.Manners.")
    ] = None,
    clean: Annotated[bool, typer.Option(help="No rooms, telephones and noise.")] = False,
    seed: Seed = 0,
    jobs: Jobs = 2,
    shard: Shard = "0/1",
    ray: Ray = None,
) -> None:
    """Voice both sides of every dialogue into stereo wav with word times."""
    from data_prep.conversation import Manners
    from data_prep.speak import SpeakSettings
    from data_prep.speak import speak as speak_records

    if next(data.glob("*.dialogue.json"), None) is not None:
        _speak_world(data, out, seed=seed, jobs=jobs, shard=shard)
        return
    settings = SpeakSettings(
        voices=voices,
        names=_names(names),
        model_voice=model_voice,
        aligner=aligner,
        manners=load_config(Manners, manners) if manners else Manners(),
        clean=clean,
        seed=seed,
    )
    tell("speak", out, speak_records(data, out, settings, how=how_of(shard, jobs, ray)))


def _speak_world(data: Path, out: Path, *, seed: int, jobs: int, shard: str) -> None:
    """The rendered world's dialogues have manners and voices of their own."""
    from data_prep.world_speak import Timing
    from data_prep.world_speak import speak as voice_dialogues

    if failed := voice_dialogues(data, out, seed=seed, jobs=jobs, timing=Timing(), shard=shard_of(shard)):
        typer.echo(f"{failed} dialogues could not be voiced; each has an .err file in {out}", err=True)
        raise typer.Exit(1)


@app.command()
def align(
    data: Data,
    out: OutDir,
    backend: Annotated[str, typer.Option(help="given, sphinx, ctc:NAME_OR_DIR or whisper:NAME_OR_DIR.")] = "given",
    diarise: Annotated[str | None, typer.Option(help="For mono recordings: pyannote:NAME_OR_DIR.")] = None,
    jobs: Jobs = 1,
    shard: Shard = "0/1",
    ray: Ray = None,
) -> None:
    """Make calls of recordings: who says which word when, transcribed, or aligned with what is known to be said."""
    from data_prep.align import align as align_records

    tell("align", out, align_records(data, out, backend=backend, diarise=diarise, how=how_of(shard, jobs, ray)))


@app.command("align-error")
def align_error(
    backend: Annotated[str, typer.Option(help="sphinx, ctc:NAME_OR_DIR or whisper:NAME_OR_DIR.")] = "sphinx",
    count: Annotated[int, typer.Option(min=1, help="Sentences.")] = 40,
    seed: Seed = 0,
) -> None:
    """How far an aligner is off the times that synthesisers tell of their own words."""
    from data_prep.align_error import align_error as measured

    for line in measured(backend, count, seed):
        typer.echo(line)


@app.command()
def encode(
    data: Data,
    codec: Annotated[Path, typer.Option(help="Codec or checkpoint directory.")],
    out: OutDir,
    batch_sec: Annotated[float, typer.Option(min=0.1, help="Seconds of stereo audio encoded at once.")] = 30.0,
    device: Device = "cpu",
    jobs: Jobs = 2,
    shard: Shard = "0/1",
    ray: Ray = None,
) -> None:
    """Turn both channels of every call into codes of a codec."""
    from data_prep.encode import encode as encode_calls

    how = how_of(shard, jobs, ray)
    tell("encode", out, encode_calls(data=data, codec_dir=codec, out=out, batch_sec=batch_sec, device=device, how=how))


@app.command()
def pack(
    data: Data,
    codes: Annotated[Path, typer.Option(help="Output folder of encode.")],
    out: Annotated[Path, typer.Option(help="Folder of the shard set; an earlier set is replaced.")],
    clips: Annotated[
        str, typer.Option(help="bytes (inside the set) or reference (paths of the calls' folder).")
    ] = "bytes",
    calls_per_file: Annotated[int, typer.Option(min=1)] = 512,
    jobs: Jobs = 1,
    shard: Shard = "0/1",
    ray: Ray = None,
) -> None:
    """Make a shard set of codes, words and pictures."""
    from data_prep.pack import pack as pack_calls

    if clips not in ("bytes", "reference"):
        raise ConfigError(f"--clips {clips}: expected bytes or reference")
    how = how_of(shard, jobs, ray)
    info, problems = pack_calls(data=data, codes=codes, out=out, how=how, clips=clips, calls_per_file=calls_per_file)
    if info is None:
        typer.echo(f"{out}: other shards are not done yet")
        return
    typer.echo(f"{out}: {info.calls} calls, {info.frames} frames, {info.pictures} pictures, {len(problems)} left out")
    for problem in problems[:10]:
        typer.echo(f"left out: {problem}")
    if problems:
        raise typer.Exit(1)


@app.command()
def stats(
    data: Annotated[list[Path], typer.Option(help="Calls, records or a shard set; several to see what leaks between.")],
    out: Annotated[Path | None, typer.Option(help="Folder for stats.json and stats.png.")] = None,
) -> None:
    """Count hours, turns, voices, lengths, kinds, overlap, splits, licences, and what splits have in common."""
    from data_prep.stats import stats as count_up

    for line in count_up(data, out):
        typer.echo(line)


@app.command()
def push(
    data: Annotated[Path, typer.Option(help="Shard set.")],
    repo: Annotated[str, typer.Option(help="OWNER/NAME of the dataset on the hub.")],
    public: Annotated[bool, typer.Option(help="For everyone to see (default: private).")] = False,
) -> None:
    """Put a shard set on the hub, with a card that names its sources and licences."""
    from data_prep.card import push_set

    typer.echo(push_set(data, repo, public=public))


@app.command()
def bench(
    codec: Annotated[Path, typer.Option(help="Codec or checkpoint directory.")] = Path("mmspeech/pretrained/tiny"),
    count: Annotated[int, typer.Option(min=1, help="Calls.")] = 64,
    voices: Annotated[str, typer.Option(help="As of speak.")] = "flite",
    size: Annotated[str, typer.Option(help="Of the Mimi compared: small or full.")] = "small",
    jobs: Jobs = 2,
) -> None:
    """Time speak, encode and pack; and encoding beside transformers' MimiModel."""
    from data_prep.bench import bench as measured

    if size not in ("small", "full"):
        raise ConfigError(f"--size {size}: expected small or full")
    for line in measured(codec, count=count, jobs=jobs, voices=voices, size=size):
        typer.echo(line)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@app.command()
def features(
    data: Annotated[Path, typer.Option(help="Shard set whose pictures and clips are looked at.")],
    out: OutDir,
    model: Annotated[str | None, typer.Option(help="Checkpoint whose tower looks (default: the embedded one).")] = None,
    shard: Shard = "0/1",
) -> None:
    """Keep what a frozen tower makes of the pictures and clips of a shard set; training reads it (data.features)."""
    from data_prep.features import make_features

    written, failed = make_features(data, model, out, shard=shard_of(shard))
    typer.echo(f"{out}: {written} features written; {failed} calls could not be read")


@app.command()
def check(
    data: Annotated[Path, typer.Option(help="Manifest of calls or questions, or a folder with one or with shards.")],
) -> None:
    """Read every file a manifest names, or a shard set, and tell each fault; exit code 1 when there is one."""
    from data_prep.check import check as check_manifest

    report = check_manifest(data)
    for fault in report.faults:
        typer.echo(fault)
    if report.num_faults > len(report.faults):
        typer.echo(f"and {report.num_faults - len(report.faults)} more")
    typer.echo(f"{data}: {report.entries} entries, {report.seconds / 3600:.2f} h, {report.num_faults} faults")
    if report.num_faults:
        raise typer.Exit(1)


@app.command()
def preview(
    data: Annotated[Path, typer.Option(help="Calls (a folder with a manifest, or the file), or a shard set.")],
    out: OutDir,
    call: Annotated[str | None, typer.Option(help="Its name, such as 000012; the first when not given.")] = None,
    tokenizer_file: Annotated[
        Path | None, typer.Option("--tokenizer", help="tokenizer.model; shows the text stream too.")
    ] = None,
    codec: Annotated[
        Path | None, typer.Option(help="Codec or checkpoint directory: decodes what is in shards.")
    ] = None,
) -> None:
    """Look at one call and listen to it: its wav, its picture, its words and text tokens on the frame grid."""
    from data_prep.preview import preview as preview_call

    for line in preview_call(data, out, call=call, tokenizer=tokenizer_file, codec=codec):
        typer.echo(line)
