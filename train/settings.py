"""What a training configuration may say. One recipe; what differs between stages is here."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmspeech.config import StrictModel


class VariantShares(StrictModel):
    """In which proportion the calls of a source are laid out as each variant (see mmspeech.data.collate)."""

    dialogue: float = Field(1.0, ge=0)
    speechless: float = Field(0.0, ge=0)
    transcribe: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some(self):
        if self.dialogue + self.speechless + self.transcribe <= 0:
            raise ValueError("at least one variant needs a share above 0")
        return self


class SourceConfig(StrictModel):
    """One shard set: a folder, or a dataset of the hub as `hub:OWNER/NAME[/FOLDER]`.

    Calls are drawn in proportion to `weight`, moving in a line to `end_weight` (None: constant); joined ones count as
    one.

    `visuals: drop` trains on the calls as if no picture were there. `max_frames`: calls longer than this are cropped
    anew each time they are drawn (None: as `DataConfig` says); in short crops voices are heard for the first time more
    often.

    `join_frames`: calls are laid one after another, with silences of up to `join_silence_frames` between them (a
    quarter of that on average), as long as they fit into so many frames. For calls that last longer than those of the
    set: a model that never sees what it remembers roll over may fall silent where that begins. Some more than
    `lm.temporal.context` is enough.
    """

    path: str
    weight: float = Field(1.0, ge=0)
    end_weight: float | None = Field(None, ge=0)
    visuals: Literal["keep", "drop"] = "keep"
    max_frames: int | None = Field(None, gt=0)
    join_frames: int | None = Field(None, gt=0)
    join_silence_frames: int = Field(0, ge=0)
    variants: VariantShares = VariantShares()

    @model_validator(mode="after")
    def _whole_or_cropped(self):
        if self.join_frames is not None and self.max_frames is not None:
            raise ValueError("join_frames takes calls as they are; leave max_frames out")
        if self.join_frames is None and self.join_silence_frames:
            raise ValueError("join_silence_frames goes with join_frames")
        return self


class DataConfig(StrictModel):
    """Sources by name (all of one codec), and how calls become batches (see mmspeech.data.collate.Layout).

    `batch_frames` bounds the frames of a batch, padding included; `pool_batches` batches are drawn at once and sorted
    by length. `workers` 0 loads in the training process. Calls that cannot be read are left out, counted and named;
    more than `max_bad_calls` of them end the run (None: never). What the tower makes of pictures is read from
    `features` (a folder of `data_prep features`) where it is there; of what is not, `cached_pictures` are remembered.
    """

    sources: dict[str, SourceConfig] = Field(min_length=1)
    valid: dict[str, SourceConfig] = Field(default_factory=dict)
    batch_frames: int = Field(4000, gt=0)
    max_frames: int = Field(400, gt=0)
    pool_batches: int = Field(32, gt=0)
    silent_share: float = Field(0.05, ge=0, le=1)
    transcribe_delay_frames: int = Field(3, ge=0)
    drop_acoustic: float = Field(0.0, ge=0, le=1)
    keep_codebooks: int = Field(1, ge=1)
    replace_codes: float = Field(0.0, ge=0, le=0.5)
    mute_gaps: float = Field(0.0, ge=0, le=1)
    max_bad_calls: int | None = Field(None, ge=0)
    workers: int = Field(0, ge=0)
    cached_pictures: int = Field(1000, ge=0)
    features: str | None = None

    @model_validator(mode="after")
    def _joined_calls_fit(self):
        for name, source in (self.sources | self.valid).items():
            if (source.join_frames or 0) > self.batch_frames:
                raise ValueError(f"{name}: join_frames {source.join_frames} exceeds batch_frames {self.batch_frames}")
            if source.join_frames is not None and name in self.valid:
                raise ValueError(f"{name}: validation calls are taken one by one; leave join_frames out")
        return self


class InitConfig(StrictModel):
    """Where a run begins.

    `checkpoint` (a checkpoint or run directory, a hub id, or `embedded`: mmspeech-tiny) alone: its model goes on.
    `model` (a configuration file) alone: fresh weights, with `codec` (directory) and `tokenizer` (file). Both: the
    configuration's model with the checkpoint's weights, codec and tokenizer; only vision adapters may be new.
    `fresh_adapters`: with checkpoint; its adapters are left out, and those of the model begin anew. `blind` leaves the
    eyes of `model` out. `tower` (a directory with tower.safetensors) gives the tower's weights; None: the
    checkpoint's, or the published ones.
    """

    checkpoint: str | None = None
    model: str | None = None
    fresh_adapters: bool = False
    blind: bool = False
    codec: str | None = None
    tokenizer: str | None = None
    tower: str | None = None

    @model_validator(mode="after")
    def _one_origin(self):
        if self.checkpoint is None and self.model is None:
            raise ValueError("give checkpoint, model, or both")
        fresh = self.checkpoint is None
        if fresh != (self.codec is not None) or fresh != (self.tokenizer is not None):
            raise ValueError("codec and tokenizer go with a fresh model; a checkpoint brings its own")
        if fresh and self.fresh_adapters:
            raise ValueError("fresh_adapters goes with checkpoint; a fresh model's adapters are fresh")
        if self.blind and (self.model is None or self.tower is not None):
            raise ValueError("blind goes with model, and not with tower")
        return self


class OptimConfig(StrictModel):
    """AdamW, gradient clipping and the schedule.

    `cosine` falls from `learning_rate` to `final_ratio` of it; `wsd` stays and falls in a line over the last
    `decay_share`. Both begin with `warmup_steps`.
    """

    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    decay_share: float = Field(0.2, gt=0, le=1)
    final_ratio: float = Field(0.05, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class LoraSettings(StrictModel):
    """Pairs of small matrices that learn in the place of large ones (see train.lora), which stay as they are.

    `targets`: patterns as in `TrainConfig.trainable`; the speech LM's linear layers among what they name are wrapped.
    What a pair adds is `alpha / rank` times its product. `dropout` only for targets outside the depth transformer.
    """

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = Field(["lm.temporal.*", "lm.depth.*"], min_length=1)


class LossConfig(StrictModel):
    """See mmspeech.lm.loss.LossWeights. `pieces` None: as many as `data.batch_frames` asks for (see train.parts).
    `plan`: of the loss on the next `plan_tokens` text tokens that are words (see mmspeech.lm.plan); 0: there is none.
    An answer should fit into them. What reads them, that many squares of the model's width, learns with the model and
    stays in the run's state.
    """

    text_pad: float = Field(0.5, ge=0)
    first_codebook: float = Field(10.0, ge=0)
    audio: float = Field(1.0, ge=0)
    depth_frames_share: float = Field(1.0, gt=0, le=1)
    depth_codebooks: int | None = Field(None, gt=0)
    pieces: int | None = Field(None, gt=0)
    plan: float = Field(0.0, ge=0)
    plan_tokens: int = Field(24, gt=0)

    @property
    def planned_tokens(self) -> int:
        """`plan_tokens`, or 0 where nothing is planned."""
        return self.plan_tokens if self.plan else 0


class GuardConfig(StrictModel):
    """When to mistrust a step or the data.

    A step whose loss or gradient norm is more than `spike` spreads above the median of the last `spike_window` good
    ones is told (`warn`), left out (`skip`; not under DeepSpeed) or ends the run (`stop`); spike null: never. When no
    batch comes for `stall_sec` seconds that is told, or ends the run; null: never.
    """

    spike: float | None = Field(12.0, gt=1)
    spike_window: int = Field(200, ge=20)
    spike_action: Literal["warn", "skip", "stop"] = "warn"
    stall_sec: float | None = Field(300.0, gt=0)
    stall_action: Literal["warn", "stop"] = "warn"


class LogConfig(StrictModel):
    """`wandb`: a project of Weights & Biases that is told everything TensorBoard is (None: it is not). It wants the
    wandb library; WANDB_MODE=offline keeps it on this machine."""

    wandb: str | None = None


class TrainConfig(StrictModel):
    """One stage. Paths are relative to `root` unless absolute (`init.model` to the working directory).

    `trainable`: names of parameters that learn: `all`, `speech` (the LM without its adapters), `adapters`, or patterns
    such as `lm.depth.*`; `!pattern` takes away. `lora`: matrices that learn through LoRA, whatever `trainable` says of
    them; with it `trainable` may be empty. The run ends at `max_steps` or after `max_minutes` of work (counted
    over resumes), whichever is first; the schedule follows the nearer end. `resume`: `auto` continues the run's newest
    checkpoint, `never` refuses a run directory that has one. `batches_per_step`: batches whose gradients one step
    averages; the processes of a launch share them evenly, so that the same steps are taken by any number of processes.
    `recompute_layers`: compute each layer of the temporal transformer twice instead of keeping what it made (less
    memory, a third more time). `compile_layers`: torch.compile for these layers (minutes at the start, faster steps on
    GPUs). `precision`: bf16 computes in bfloat16 beside float32 weights; auto does so where the device computes in it,
    and where `frozen_precision` is bf16.
    `frozen_precision`: bf16 keeps the matrices that do not learn in bfloat16 only, in memory and in checkpoints;
    auto does so on GPUs that compute in it, too (under DeepSpeed its own configuration decides). `peak_tflops`: of one
    device, for the model FLOPs utilisation in the log (None: by its name). `device: cuda` refuses to run without one.
    `sample_every_steps`: how often `sample_calls` validation calls are answered for you to hear and see in RUN/samples
    (None: at every evaluation; 0: never). `deepspeed`: a DeepSpeed configuration (configs/deepspeed/), for launches by
    torchrun or deepspeed.
    """

    root: str = "data"
    run: str
    init: InitConfig
    trainable: list[str]
    lora: LoraSettings | None = None
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    guards: GuardConfig = GuardConfig()
    max_steps: int = Field(gt=0)
    max_minutes: float | None = Field(None, gt=0)
    batches_per_step: int = Field(1, gt=0)
    deepspeed: str | None = None
    recompute_layers: bool = False
    compile_layers: bool = False
    frozen_precision: Literal["auto", "no", "bf16"] = "auto"
    precision: Literal["auto", "no", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: float | None = Field(None, gt=0)
    log_every_steps: int = Field(10, gt=0)
    eval_every_steps: int = Field(250, gt=0)
    eval_batches: int = Field(8, gt=0)
    sample_every_steps: int | None = Field(None, ge=0)
    sample_calls: int = Field(2, gt=0)
    log: LogConfig = LogConfig()
    save_every_steps: int = Field(250, gt=0)
    keep_last: int = Field(2, gt=0)
    max_bad_steps: int = Field(20, gt=0)
    resume: Literal["auto", "never"] = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _something_learns(self):
        if not self.trainable and self.lora is None:
            raise ValueError("nothing is to learn: name parts in trainable, or give lora")
        return self

    def at(self, path: str) -> Path:
        """`path` below `root`, unless absolute."""
        return Path(self.root) / path

    @property
    def run_dir(self) -> Path:
        return self.at(self.run)
