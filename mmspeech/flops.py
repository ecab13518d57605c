"""What a training step computes, in floating-point operations, from shapes alone; and what devices can compute.

Only matrix products and attention count, two operations per multiply-add. A step of attention counts
min(T, context) keys, without halving for causality, as is usual. Pooling of visual tokens and the loss on the coming
words (mmspeech.lm.plan) are left out. Layers that are
computed twice to save memory count once: the number measures the work the model needs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from mmspeech.config import LMConfig
from mmspeech.lm.model import looking_layers

# Dense peaks as the makers state them, in 1e12 operations a second: bf16 on matrix units, and float32 outside of them.
PEAK_TFLOPS = {
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIE": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "RTX A6000": (155.0, 38.7),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def peak_tflops(device_name: str, *, precision: str) -> float | None:
    """The peak of a GPU by the name torch gives it, at `precision` bf16 or no (float32); None when it is not known."""
    words = device_name.upper().replace("-", " ").split()
    for name, (half, single) in PEAK_TFLOPS.items():
        if set(name.split()) <= set(words):
            return half if precision == "bf16" else single
    return None


@dataclass(frozen=True)
class Work:
    """What a forward pass runs on: `rows` calls of `steps` frames, padding included, `visual_tokens` before each row
    (0: no eyes), and `depth_frames` frames in all that the depth transformer learns from."""

    rows: int
    steps: int
    visual_tokens: int
    depth_frames: float


@dataclass(frozen=True)
class Cost:
    """Operations of the forward pass, of the gradients that pass through, and of the gradients of what trains."""

    forward: float = 0.0
    through: float = 0.0
    weights: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.through + self.weights

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.through + other.through, self.weights + other.weights)

    def times(self, count: float) -> "Cost":
        return Cost(self.forward * count, self.through * count, self.weights * count)


class ModelFlops:
    """Operations of training one model whose `trainable` parameters learn; ask it for the cost of any batch.

    `shapes`: of all parameters, by their names in VisionSpeechModel. A gradient passes through a layer only when
    something below it trains.
    """

    def __init__(self, config: LMConfig, shapes: Mapping[str, Sequence[int]], trainable: Collection[str]):
        self.config = config
        self._shapes, self._trainable = shapes, set(trainable)
        # For each part: operations per step, per step and key, per visual token, per step and token, per depth frame.
        self._per: dict[str, dict[str, Cost]] = {}
        seen = self._vision() if config.fusion is not None else []
        self._depth(self._temporal(seen))

    def of(self, work: Work) -> dict[str, Cost]:
        """The cost of `work` by part: projector, cross_attention, temporal, text_head, depth."""
        steps = work.rows * work.steps
        counts = {
            "step": steps,
            "looking step": steps if work.visual_tokens else 0,
            "key": steps * min(work.steps, self.config.temporal.context),
            "token": work.rows * work.visual_tokens,
            "look": steps * work.visual_tokens,
            "depth frame": work.depth_frames,
        }
        return {
            part: sum((cost.times(counts[unit]) for unit, cost in units.items()), Cost())
            for part, units in self._per.items()
        }

    def total(self, work: Work) -> float:
        """All operations of a step on `work`."""
        return sum(cost.total for cost in self.of(work).values())

    def _vision(self) -> list[bool]:
        """Projector, and keys and values; for each set of projections, whether a gradient passes through them."""
        flows = self._trains("projector.pool")
        for name in ("projector.hidden", "projector.proj"):
            flows = self._linear("projector", "token", name, flows)
        flows = flows or self._trains("projector.norm")
        count = 1 if self.config.fusion.shared else len(looking_layers(self.config.fusion, self.config.temporal))
        return [
            self._linear("cross_attention", "token", f"lm.temporal.fusion.projections.{i}.kv_proj", flows)
            for i in range(count)
        ]

    def _temporal(self, seen: list[bool]) -> bool:
        """The layers and the text head; returns whether a gradient passes on into what the hidden vectors feed."""
        options, fusion = self.config.temporal, self.config.fusion
        flows = self._trains("lm.temporal.text_emb") or self._trains("lm.temporal.audio_emb")
        places = {} if fusion is None else {n: i for i, n in enumerate(looking_layers(fusion, options))}
        for index in range(options.num_layers):
            layer = f"lm.temporal.transformer.layers.{index}."
            branch = flows or self._trains(layer + "norm1")
            branch = self._linear("temporal", "step", layer + "self_attn.in_proj", branch)
            products = 4 * options.dim
            self._add("temporal", "key", Cost(products, 2 * products if branch else 0))
            branch = self._linear("temporal", "step", layer + "self_attn.out_proj", branch)
            flows = flows or branch or self._trains(layer + "scale1")
            if index in places:
                flows = self._look(places[index], seen, flows)
            branch = flows or self._trains(layer + "norm2")
            for name in ("ffn.linear_in", "ffn.linear_out"):
                branch = self._linear("temporal", "step", layer + name, branch)
            flows = flows or branch or self._trains(layer + "scale2")
        flows = flows or self._trains("lm.temporal.out_norm")
        self._linear("text_head", "step", "lm.temporal.text_linear", flows)
        return flows

    def _look(self, place: int, seen: list[bool], flows: bool) -> bool:
        fusion = "lm.temporal.fusion."
        own = place % len(seen)
        queries = flows or self._trains(f"{fusion}norms.{place}")
        queries = self._linear("cross_attention", "looking step", f"{fusion}projections.{own}.q_proj", queries)
        product = 2 * self.config.temporal.dim
        # Backward: the scores' gradient, then those of queries, keys and values, each one product.
        wanted = (queries or seen[own]) + queries + 2 * seen[own]
        self._add("cross_attention", "look", Cost(2 * product, product * wanted))
        update = queries or seen[own]
        update = self._linear("cross_attention", "looking step", f"{fusion}projections.{own}.out_proj", update)
        gates = {name.split(".")[4] for name in self._shapes if name.startswith(fusion + "gates.")}
        if gates:
            gate, opens = f"{fusion}gates.{place % len(gates)}", update
            for name in (f"{gate}.linear_in", f"{gate}.linear_out"):
                opens = self._linear("cross_attention", "looking step", name, opens)
            update = update or opens or self._trains(gate)
        return flows or update or self._trains(fusion + "factors")

    def _depth(self, flows: bool) -> None:
        options, count = self.config.depth, self.config.num_codebooks
        unit = ("depth", "depth frame")
        flows = self._linear(*unit, "lm.depth.hidden_in", flows)
        flows = flows or self._trains("lm.depth.text_emb") or self._trains("lm.depth.audio_emb")
        products = 4 * options.dim * count * count
        for index in range(options.num_layers):
            layer = f"lm.depth.layers.{index}."
            branch = self._linear(*unit, layer + "in_proj", flows or self._trains(layer + "norm1"))
            self._add(*unit, Cost(products, 2 * products if branch else 0))
            branch = self._linear(*unit, layer + "out_proj", branch)
            flows = flows or branch
            branch = flows or self._trains(layer + "norm2")
            for name in ("ffn_in", "ffn_out"):
                branch = self._linear(*unit, layer + name, branch)
            flows = flows or branch
        self._linear(*unit, "lm.depth.audio_linear", flows)

    def _linear(self, part: str, unit: str, name: str, flows: bool) -> bool:
        """Count the matrices below `name` (a pair of small ones may stand beside the large one: LoRA); returns whether
        a gradient passes through the output."""
        below = [(key, shape) for key, shape in self._shapes.items() if key.startswith(name + ".") and len(shape) > 1]
        first_trains = any("lora_A" in key and key in self._trainable for key, _ in below)
        for key, shape in below:
            products = 2 * prod(shape)
            passes = flows or ("lora_B" in key and first_trains)
            self._add(part, unit, Cost(products, products * passes, products * (key in self._trainable)))
        return flows or self._trains(name)

    def _trains(self, name: str) -> bool:
        return any(key == name or key.startswith(name + ".") for key in self._trainable)

    def _add(self, part: str, unit: str, cost: Cost) -> None:
        units = self._per.setdefault(part, {})
        units[unit] = units.get(unit, Cost()) + cost
