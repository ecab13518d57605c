"""The codec stage: audio -> codes -> audio, with phones taught to the first codebook.

`python -m train.codec --config configs/train/tiny_codec.yaml [a.b=c ...]`
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmspeech.audio.codec import Codec, CodecTrainOut
from mmspeech.audio.waveform import write_wav
from mmspeech.config import CodecConfig, ConfigError, StrictModel, read_mapping
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ
from train.command import run_stage
from train.machine import fast_precision
from train.metrics import MetricsLog

PHONE_SLOT_SEC = 0.02
SILENCE = "sil"


class CodecStageConfig(StrictModel):
    """Settings of the codec stage. `manifests` are those of `data_prep speak`; `phones` in class order.

    Users are made to sound like more people than they are: a crop is played up to `speaker_jitter` faster or slower
    (a share; pitch and formants move with it) and its spectrum is bent by up to `colour_db` up or down.
    """

    codec: CodecConfig
    manifests: list[str]
    out: str
    phones: list[str]
    crop_frames: int = Field(30, gt=1)
    batch_size: int = Field(8, gt=0)
    max_steps: int = Field(3000, gt=0)
    continuous_steps: int = Field(300, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = 100
    user_share: float = Field(0.6, ge=0, le=1)
    speaker_jitter: float = Field(0.0, ge=0, le=0.5)
    colour_db: float = Field(0.0, ge=0, le=20)
    commitment_weight: float = 0.25
    phone_weight: float = 1.0
    silence_weight: float = 0.3
    save_every_steps: int = Field(500, gt=0)
    sample_every_steps: int | None = Field(500, gt=0)
    log_every_steps: int = Field(25, gt=0)
    seed: int = 0


class CallCrops:
    """Random crops of calls with their phone labels; the batch of a step depends on nothing but seed and step."""

    def __init__(self, config: CodecStageConfig):
        self.config = config
        self.entries = [path for manifest in config.manifests for path in _manifest_paths(Path(manifest))]
        self.class_of = {phone: index for index, phone in enumerate(config.phones)}
        self._labels: dict[Path, dict[str, list]] = {}

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """wave [B, 1, N] and phone classes [B, T, slots] of each crop."""
        rng = np.random.default_rng([self.config.seed, step])
        crops = [self._crop(rng) for _ in range(batch_size)]
        return torch.stack([wave for wave, _ in crops])[:, None], torch.stack([labels for _, labels in crops])

    def _crop(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        path = self.entries[rng.integers(len(self.entries))]
        channel = int(rng.random() < self.config.user_share)
        phones = self._phones(path)["user" if channel else "main"]
        speed = 1 + channel * rng.uniform(-self.config.speaker_jitter, self.config.speaker_jitter)
        played = self.config.crop_frames * FRAME_SAMPLES
        length = round(played * speed)
        try:
            with soundfile.SoundFile(path) as file:
                # A crop is laid around some sound, so that silence does not crowd out speech.
                middle_sec = (
                    phones[rng.integers(len(phones))][1] if phones else rng.random() * file.frames / SAMPLE_RATE_HZ
                )
                start = int(middle_sec * SAMPLE_RATE_HZ - rng.random() * length)
                start = min(max(0, start), max(0, file.frames - length))
                file.seek(start)
                wave = file.read(length, dtype="float32", always_2d=True)[:, channel]
        except soundfile.LibsndfileError as error:
            raise ConfigError(f"{path}: not there or not readable as audio; make the calls again") from error
        wave = np.pad(wave, (0, length - len(wave))) * 10 ** rng.uniform(-0.4, 0.2)
        if channel:
            wave = coloured(resampled(wave, played), rng, colour_db=self.config.colour_db)
        return torch.from_numpy(wave.astype(np.float32)), self._slots(phones, start / SAMPLE_RATE_HZ, speed)

    def _slots(self, phones: list, start_sec: float, speed: float) -> Tensor:
        slots = round(FRAME_SAMPLES / SAMPLE_RATE_HZ / PHONE_SLOT_SEC)
        labels = np.full(self.config.crop_frames * slots, self.class_of[SILENCE])
        for phone, begin_sec, end_sec in phones:
            first = round((begin_sec - start_sec) / speed / PHONE_SLOT_SEC)
            last = round((end_sec - start_sec) / speed / PHONE_SLOT_SEC)
            if last > 0 and first < len(labels):
                labels[max(0, first) : last] = self.class_of[phone]
        return torch.from_numpy(labels).view(self.config.crop_frames, slots)

    def _phones(self, path: Path) -> dict[str, list]:
        if path not in self._labels:
            self._labels[path] = read_mapping(path.with_suffix(".json")).get("phones", {})
            unknown = {phone for rows in self._labels[path].values() for phone, *_ in rows} - self.class_of.keys()
            if unknown or not {"main", "user"} <= self._labels[path].keys():
                problem = (
                    f"phones the config lacks: {', '.join(sorted(unknown))}" if unknown else "no phones of both sides"
                )
                raise ConfigError(f"{path.with_suffix('.json')}: {problem}; expected a call of `data_prep babble`")
        return self._labels[path]


def resampled(wave: np.ndarray, length: int) -> np.ndarray:
    """[N] -> [length]: the same sound, faster or slower."""
    import soxr

    if len(wave) == length:
        return wave
    played = soxr.resample(wave, len(wave), length, quality="MQ")[:length]
    return np.pad(played, (0, length - len(played)))


def coloured(wave: np.ndarray, rng: np.random.Generator, *, colour_db: float) -> np.ndarray:
    """[N] -> [N] with a smooth random gain over frequency; one in four loses what lies above a random cut-off."""
    if not colour_db:
        return wave
    spectrum = np.fft.rfft(wave)
    hertz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE_HZ)
    points_hz = np.geomspace(100, 12_000, 8)
    gain_db = np.interp(hertz, points_hz, rng.uniform(-colour_db, colour_db, len(points_hz)))
    if rng.random() < 0.25:
        gain_db -= 60 * np.clip((hertz / rng.uniform(3_000, 8_000) - 1) / 0.2, 0, 1)
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(wave))


def _manifest_paths(manifest: Path) -> list[Path]:
    if not manifest.is_file():
        raise ConfigError(f"{manifest}: no such manifest; make one with `python -m data_prep speak`")
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
        paths = [manifest.parent / json.loads(line)["path"] for line in lines if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{manifest}: not a manifest ({error}); expected lines with the key path") from error
    if not paths:
        raise ConfigError(f"{manifest}: names no call; make some with `python -m data_prep speak`")
    return paths


class SpectralLoss(torch.nn.Module):
    """Mean absolute difference of log magnitudes at several resolutions, on a mel scale."""

    def __init__(self, sample_rate_hz: int = SAMPLE_RATE_HZ, windows: tuple[int, ...] = (480, 1024, 2048)):
        super().__init__()
        from mmspeech.audio.spectral import mel_filters

        self.windows = windows
        for width in windows:
            mels = mel_filters(
                num_mels=max(40, min(96, width // 12)),
                window_samples=width,
                sample_rate_hz=sample_rate_hz,
                max_hz=sample_rate_hz / 2,
            )
            self.register_buffer(f"mels_{width}", mels)
            self.register_buffer(f"hann_{width}", torch.hann_window(width))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Both [B, N] -> scalar."""
        total = predicted.new_zeros(())
        for width in self.windows:
            total = total + F.l1_loss(self._log_mel(predicted, width), self._log_mel(target, width))
        return total / len(self.windows)

    def _log_mel(self, wave: Tensor, width: int) -> Tensor:
        # Windows at half overlap, cut by slices: the gradient of torch.stft's strided view is several times slower.
        halves = wave[:, : wave.shape[-1] // (width // 2) * (width // 2)].unflatten(-1, (-1, width // 2))
        windows = torch.cat([halves[:, :-1], halves[:, 1:]], dim=-1) * getattr(self, f"hann_{width}")
        spectrum = torch.view_as_real(torch.fft.rfft(windows))
        return (spectrum.pow(2).sum(-1) @ getattr(self, f"mels_{width}")).clamp(min=1e-4).log()


def codec_losses(codec: Codec, wave: Tensor, labels: Tensor, out: CodecTrainOut, spectral: SpectralLoss) -> dict:
    """spectral, commitment and phone losses (scalars), and the share of phones read rightly outside silence."""
    delay = codec.decoder_delay_samples
    heard = out.wave[:, 0, delay:].float()
    losses = {"spectral": spectral(heard, wave[:, 0, : heard.shape[-1]]), "commitment": out.commitment}
    if out.phone_logits is not None:
        # The head names the frame before its own.
        logits, target = out.phone_logits[:, 1:].float(), labels[:, :-1]
        losses["phone"] = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        losses["phone_target"] = target.flatten()
        losses["phone_right"] = (logits.argmax(-1) == target).flatten()
    return losses


def total_loss(losses: dict, config: CodecStageConfig) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum, and the numbers to log."""
    total = losses["spectral"] + config.commitment_weight * losses["commitment"]
    log = {"spectral": losses["spectral"].item(), "commitment": losses["commitment"].item()}
    if "phone" in losses:
        voiced = losses["phone_target"] != config.phones.index(SILENCE)
        weight = torch.where(voiced, 1.0, config.silence_weight)
        phone = (losses["phone"] * weight).sum() / weight.sum()
        total = total + config.phone_weight * phone
        log |= {"phone": phone.item(), "phone_right": losses["phone_right"][voiced].float().mean().item()}
    return total, log


def learning_rate(step: int, config: CodecStageConfig) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save_checkpoint(path: Path, *, codec: Codec, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Atomic: the last good checkpoint stays until the new one is whole. Holds what an exact resume needs."""
    temporary = path.with_suffix(".tmp")
    state = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state | {"rng": torch.get_rng_state()}, temporary)
    temporary.replace(path)


def train_codec(config: CodecStageConfig) -> Path:
    """Run or resume the stage; returns the folder with codec.safetensors, config.json, metrics.jsonl and samples."""
    from accelerate import Accelerator
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mmspeech.audio.codec import build_codec

    # 1. Parts
    torch.manual_seed(config.seed)
    accelerator = Accelerator(mixed_precision=fast_precision(on_cpu=not torch.cuda.is_available()))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    codec = build_codec(config.codec)
    optimizer = torch.optim.AdamW(
        codec.parameters(), lr=config.learning_rate, betas=(0.8, 0.99), weight_decay=0.01, fused=True
    )
    codec, optimizer = accelerator.prepare(codec, optimizer)
    spectral = SpectralLoss(config.codec.sample_rate_hz).to(accelerator.device)
    crops = CallCrops(config)

    # 2. Resume
    checkpoint, start = out / "checkpoint.pt", 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        accelerator.unwrap_model(codec).load_state_dict(saved["codec"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        start = saved["step"]

    # 3. Steps
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    metrics = MetricsLog(out, step=start)
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("codec", total=config.max_steps, completed=start)
        codec.train()
        began, began_step = time.monotonic(), start
        for step in range(start, config.max_steps):
            wave, labels = crops.batch(step, config.batch_size)
            wave, labels = wave.to(accelerator.device), labels.to(accelerator.device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            with accelerator.autocast():
                result = codec(wave, quantize=step >= config.continuous_steps)
            loss, log = total_loss(
                codec_losses(accelerator.unwrap_model(codec), wave, labels, result, spectral), config
            )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(task)
            if (step + 1) % config.log_every_steps == 0:
                steps = step + 1 - began_step
                seconds = steps * config.batch_size * config.crop_frames * 0.08
                log |= {"audio_sec_per_sec": seconds / (time.monotonic() - began)}
                if result.codes is not None:
                    log["codes_used"] = [int(row.unique().numel()) for row in result.codes.transpose(0, 1)]
                metrics.write("train", step + 1, log)
                shown = f"codec spectral {log['spectral']:.3f} phones {log.get('phone_right', 0):.2f}"
                progress.update(task, description=shown)
            if (step + 1) % config.save_every_steps == 0 or step + 1 == config.max_steps:
                model = accelerator.unwrap_model(codec)
                save_checkpoint(checkpoint, codec=model, optimizer=optimizer, step=step + 1)
            if config.sample_every_steps and (step + 1) % config.sample_every_steps == 0:
                write_sample(accelerator.unwrap_model(codec), crops, out / "samples" / f"step_{step + 1:08d}.wav")
    metrics.close()

    # 4. Result
    export_codec(accelerator.unwrap_model(codec), config, out)
    return out


@torch.no_grad()
def write_sample(codec: Codec, crops: CallCrops, path: Path) -> None:
    """A crop to listen to, always the same: left as it is, right through the codec (`decoder_delay_samples` late)."""
    wave, _ = crops.batch(0, 1)
    codec.eval()
    heard = codec.decode(codec.encode(wave.to(next(codec.parameters()).device)))
    codec.train()
    write_wav(path, torch.stack([wave[0, 0], heard[0, 0].float().cpu()]), codec.sample_rate_hz)


def export_codec(codec: Codec, config: CodecStageConfig, out: Path) -> None:
    """codec.safetensors and config.json, without the head that only training needs."""
    from safetensors.torch import save_file

    weights = {name: tensor for name, tensor in codec.state_dict().items() if not name.startswith("phone_head.")}
    save_file(weights, out / "codec.safetensors.tmp")
    (out / "codec.safetensors.tmp").replace(out / "codec.safetensors")
    plain = config.codec.model_copy(update={"num_phones": 0}) if config.codec.kind == "spectral" else config.codec
    (out / "config.json").write_text(plain.model_dump_json(indent=2) + "\n", encoding="utf-8")


def main() -> None:
    run_stage(__doc__.splitlines()[0], CodecStageConfig, train_codec)


if __name__ == "__main__":
    main()
