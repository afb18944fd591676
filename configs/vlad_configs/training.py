"""How policies are trained: published and own configurations by name. Data and its checks only.

Values of `pi05_libero_pytorch` and its LightVLA variant are those published for openpi's PyTorch trainer.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Literal

from vlad_configs.errors import ConfigError
from vlad_configs.models import GEMMA_VARIANTS, GemmaConfig, ModelConfig, SiglipConfig
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_configs.pruning import Positions

WeightsDtype = Literal["fp32", "bf16", "fp16"]
TrainPrecision = Literal["fp32", "bf16"]


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, then half a cosine.

    Attributes:
        warmup_steps: the first step has `peak / (warmup_steps + 1)`.
        peak: reached after the warm-up.
        decay_steps: step at which `final` is reached, warm-up included.
        final: from there on.
    """

    warmup_steps: int
    peak: float
    decay_steps: int
    final: float

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.decay_steps:
            raise ConfigError(
                f"warmup_steps must lie in 0..{self.decay_steps - 1} (decay_steps {self.decay_steps}), "
                f"not {self.warmup_steps}"
            )
        if not 0 <= self.final <= self.peak or self.peak <= 0:
            raise ConfigError(f"0 <= final <= peak expected, not final {self.final:g} and peak {self.peak:g}")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, openpi's by default. Wrist cameras only change colours.

    Attributes:
        crop: share of height and width that is kept, at a random place.
        rotation_degrees: largest rotation either way.
        shift: share of height and width by which pictures, wrists' too, are moved at most, by whole pixels
            and without scaling; unlike a crop's, its mean is the picture that is seen when serving.
        brightness, contrast, saturation: factors are drawn from 1 minus this to 1 plus this.
    """

    crop: float = 0.95
    rotation_degrees: float = 5.0
    shift: float = 0.0
    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop must lie in 0..1, not {self.crop}")
        if not 0 <= self.rotation_degrees < 90:
            raise ConfigError(f"rotation_degrees must lie in 0..90, not {self.rotation_degrees}")
        if self.shift and (self.crop < 1 or self.rotation_degrees):
            raise ConfigError("shift moves whole pixels: it goes with crop 1 and rotation_degrees 0 only")
        for name in ("shift", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in 0..1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class PruningTraining:
    """LightVLA's straight-through selection of image tokens while training.

    Attributes:
        noise: height of the uniform noise on the scores at step 0; it falls to 0 linearly until the end.
        positions: where a selected token stands, see `TokenPruning`.
    """

    noise: float = 1.0
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ConfigError(f"the pruner's noise must not be negative, not {self.noise}")
        if self.positions not in ("original", "compact"):
            raise ConfigError(f"positions must be 'original' or 'compact', not {self.positions!r}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run, but for its data and its place.

    Attributes:
        openpi_config: a name of `OPENPI_CONFIGS`: robot, prompt, norm stats folder, relative actions.
        model: the network.
        from_scratch: True where training may begin without weights.
        num_steps, batch_size: the batch is that of all processes together.
        learning_rate, beta2, weight_decay, clip_norm: of AdamW; beta1 is 0.9, epsilon 1e-8.
        draws_per_sample: noises and times drawn for each frame of a batch. Images and prompt are computed
            once for all of them, so that more make the gradient steadier for little; openpi draws one.
        ema_decay: of the weights that are served; None serves the last ones.
        augmentation: of images; None for none.
        precision: arithmetic; `bf16` keeps master weights, heads, norms and the loss in float32.
        weights_dtype: of the served file.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping them.
        mask_padding: leave actions past the end of an episode out of the loss; openpi counts the last
            action repeated.
        rtc_max_delay: train with up to this many first actions given, for real-time chunking; 0 for none.
        pruning: train LightVLA's selection of image tokens; None for none.
        save_every, keep_every: steps between checkpoints, and between those that are never removed.
        log_every: steps between log lines.
        seed: of everything that is drawn.
    """

    openpi_config: str
    model: ModelConfig
    from_scratch: bool
    num_steps: int
    batch_size: int
    learning_rate: LearningRate
    beta2: float = 0.95
    weight_decay: float = 1e-10
    clip_norm: float = 1.0
    draws_per_sample: int = 1
    ema_decay: float | None = None
    augmentation: Augmentation | None = Augmentation()
    precision: TrainPrecision = "bf16"
    weights_dtype: WeightsDtype = "bf16"
    gradient_checkpointing: bool = True
    mask_padding: bool = False
    rtc_max_delay: int = 0
    pruning: PruningTraining | None = None
    save_every: int = 1000
    keep_every: int = 5000
    log_every: int = 50
    seed: int = 42

    def __post_init__(self) -> None:
        if self.openpi_config not in OPENPI_CONFIGS:
            raise ConfigError(f"unknown openpi_config '{self.openpi_config}'")
        named = OPENPI_CONFIGS[self.openpi_config]
        if named.family != self.model.family:
            raise ConfigError(
                f"'{self.openpi_config}' is {named.family}, the model to be trained is {self.model.family}"
            )
        for name in ("num_steps", "batch_size", "draws_per_sample", "save_every", "keep_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in 0..1, not {self.ema_decay}")
        if not 0 < self.beta2 < 1 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise ConfigError("0 < beta2 < 1, weight_decay >= 0 and clip_norm > 0 expected")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision must be 'fp32' or 'bf16', not {self.precision!r}")
        if self.weights_dtype not in ("fp32", "bf16", "fp16"):
            raise ConfigError(f"weights_dtype must be 'fp32', 'bf16' or 'fp16', not {self.weights_dtype!r}")
        if not 0 <= self.rtc_max_delay < self.model.action_horizon:
            raise ConfigError(
                f"rtc_max_delay must lie in 0..{self.model.action_horizon - 1}, not {self.rtc_max_delay}"
            )


_LIBERO_RATE = LearningRate(warmup_steps=10_000, peak=5e-5, decay_steps=1_000_000, final=5e-5)

_PI05_LIBERO = TrainConfig(
    openpi_config="pi05_libero",
    model=ModelConfig("pi05", action_horizon=10, max_token_len=200),
    from_scratch=False,
    num_steps=30_000,
    batch_size=64,
    learning_rate=_LIBERO_RATE,
    save_every=5000,
    keep_every=5000,
)

_SMALL_GEMMA: Mapping[str, int] = {"depth": 3, "num_heads": 4, "num_kv_heads": 1, "head_dim": 32}

LIBERO_SMALL_MODEL = ModelConfig(
    family="pi05",
    siglip=SiglipConfig(width=192, depth=4, mlp_dim=512, num_heads=6, patch_size=14, image_size=112),
    vlm=GemmaConfig(width=192, mlp_dim=576, **_SMALL_GEMMA),
    expert=GemmaConfig(width=160, mlp_dim=448, **_SMALL_GEMMA),
    vocab_size=768,
    action_horizon=10,
    max_token_len=48,
)
"""Two cameras of 64 tokens each, prompt and state; ten steps run on two CPU cores within a control period."""

_DEBUG_MODEL = ModelConfig(
    family="pi05",
    siglip=SiglipConfig(width=64, depth=2, mlp_dim=144, num_heads=4, patch_size=14, image_size=56),
    vlm=GEMMA_VARIANTS["dummy"],
    expert=GEMMA_VARIANTS["dummy"],
    vocab_size=512,
    action_horizon=10,
    max_token_len=128,
)

TRAIN_CONFIGS: Mapping[str, TrainConfig] = {
    "pi05_libero_pytorch": _PI05_LIBERO,
    "pi05_libero_pytorch_lightvla": dataclasses.replace(_PI05_LIBERO, pruning=PruningTraining()),
    "pi05_libero_small": TrainConfig(
        openpi_config="pi05_libero_small",
        model=LIBERO_SMALL_MODEL,
        from_scratch=True,
        num_steps=12_000,
        batch_size=512,
        learning_rate=LearningRate(warmup_steps=500, peak=1e-3, decay_steps=12_000, final=1e-5),
        weight_decay=1e-4,
        draws_per_sample=4,
        ema_decay=0.999,
        # The camera stands still: what a crop scales and a rotation turns would be centimetres on the table.
        augmentation=Augmentation(crop=1.0, rotation_degrees=0.0, shift=0.03),
        weights_dtype="fp16",
        gradient_checkpointing=False,
        mask_padding=True,
        save_every=1000,
    ),
    "debug_pi05": TrainConfig(
        openpi_config="pi05_libero_small",
        model=_DEBUG_MODEL,
        from_scratch=True,
        num_steps=10,
        batch_size=2,
        learning_rate=LearningRate(warmup_steps=1, peak=1e-3, decay_steps=1000, final=1e-4),
        precision="fp32",
        weights_dtype="fp32",
        save_every=5,
        log_every=1,
    ),
}


def train_config(name: str) -> TrainConfig:
    """Look a training configuration up.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    if name in TRAIN_CONFIGS:
        return TRAIN_CONFIGS[name]
    closest = difflib.get_close_matches(name, TRAIN_CONFIGS, n=1, cutoff=0.0)
    raise ConfigError(
        f"training config '{name}' not found; did you mean '{closest[0]}'? "
        f"known: {', '.join(sorted(TRAIN_CONFIGS))}"
    )
