"""Model sizes by name. One dial: the same classes with other numbers."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lwm_env.ahead import AheadConfig
from lwm_env.camera import CameraConfig
from lwm_env.dynamics import DynamicsConfig
from lwm_env.errors import ConfigMismatch
from lwm_env.flow import FREE, RIGID
from lwm_env.lattice import LINES
from lwm_env.motion import MotionConfig
from lwm_env.tokenizer import TokenizerConfig

PARTS = {
    "tokenizer": TokenizerConfig,
    "camera": CameraConfig,
    "motion": MotionConfig,
    "ahead": AheadConfig,
    "dynamics": DynamicsConfig,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model's shape: the preset it came from and the numbers it stands for."""

    preset: str = "nano"
    frame_size: tuple[int, int] = (64, 64)  # height, width
    margin: int = 32  # pixels that the canvas remembers beyond each edge of the view
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    ahead: AheadConfig = field(default_factory=AheadConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)

    def __post_init__(self) -> None:
        multiple = 2 * self.tokenizer.patch
        if any(side < multiple or side % multiple for side in self.frame_size):
            raise ConfigMismatch(
                f"frame_size {self.frame_size} was given, but both sides must be multiples of {multiple} "
                f"(twice the tokenizer's patch). Choose another size or patch."
            )
        if self.margin < 1:
            raise ConfigMismatch(f"margin must be at least 1 pixel, got {self.margin}")
        ahead, patch, whose = self.ahead, self.tokenizer.patch, "the tokenizer's patch"
        if ahead.tiles:
            patch, whose = math.ceil(self.camera.lattice), "the pixels of a tile of camera.lattice"
            if not patch or ahead.width < 2 * patch or ahead.rows % patch or 0 < ahead.rows < 2 * patch:
                raise ConfigMismatch(
                    f"ahead.tiles is 1, ahead.width {ahead.width}, ahead.rows {ahead.rows} and camera.lattice "
                    f"{self.camera.lattice}, but strips of tiles need a lattice and are at least two tiles wide: set "
                    f"ahead.width, and ahead.rows unless it is 0, to a multiple of a tile's pixels."
                )
        if ahead.width and (ahead.width % patch or ahead.reach % patch or ahead.beside % patch):
            raise ConfigMismatch(
                f"ahead.width {ahead.width}, ahead.reach {ahead.reach} and ahead.beside {ahead.beside} must be "
                f"multiples of {whose}, {patch}."
            )
        if ahead.width and (max(ahead.width, ahead.rows) >= self.margin or ahead.reach > min(self.frame_size)):
            raise ConfigMismatch(
                f"ahead.width {ahead.width} and ahead.rows {ahead.rows} must be below the margin, {self.margin}, and "
                f"ahead.reach {ahead.reach} at most the smaller side of a frame, {min(self.frame_size)}."
            )
        told = LINES if self.camera.lattice and self.camera.edges else 0
        if self.motion.lines not in (0, told):
            raise ConfigMismatch(
                f"motion.lines is {self.motion.lines}, but there are {told} planes: {LINES} where camera.lattice and "
                f"camera.edges are set, otherwise none."
            )
        if ahead.width and self.motion.flow == FREE:
            raise ConfigMismatch(
                "a view in depth (motion.flow = 1) has no edge to draw ahead at: set ahead.width to 0."
            )
        if ahead.beside and self.motion.flow != RIGID:
            raise ConfigMismatch(f"ahead.beside is {ahead.beside}, but the view does not turn: set it to 0.")

    @property
    def cells(self) -> tuple[int, int]:
        patch = self.tokenizer.patch
        return self.frame_size[0] // patch, self.frame_size[1] // patch

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_json`; ConfigMismatch names what does not belong."""
        try:
            parts = {name: part(**data.get(name, {})) for name, part in PARTS.items()}
            rest = {name: value for name, value in data.items() if name not in PARTS}
            if "frame_size" in rest:
                rest["frame_size"] = tuple(rest["frame_size"])
            return cls(**rest, **parts)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigMismatch(
                f"the model configuration does not fit this version of lwm-env: {error}. "
                f"Use the version that wrote it, or train anew."
            ) from error

    def override(self, changes: dict[str, Any]) -> "ModelConfig":
        """A copy with some numbers changed, named as `motion.dim` or `margin`."""
        data = self.to_json()
        for name, value in changes.items():
            part, _, key = name.rpartition(".")
            target = data.get(part) if part else data
            if not isinstance(target, dict) or key not in target:
                known = sorted([k for k in data if k not in PARTS] + [f"{p}.{k}" for p in PARTS for k in data[p]])
                raise ConfigMismatch(f"unknown model setting {name!r}; known are {', '.join(known)}")
            target[key] = value
        return ModelConfig.from_json(data)


def _preset(
    name: str, size: tuple[int, int], patch: int, dims: tuple[int, int, int], blocks: int, attention: int
) -> ModelConfig:
    dim, wide, depth = dims
    return ModelConfig(
        preset=name,
        frame_size=size,
        margin=min(size) // 2,
        tokenizer=TokenizerConfig(
            patch=patch,
            latent_dim=patch,
            encoder_dim=dim * 3 // 4,
            encoder_blocks=depth,
            decoder_dim=dim,
            decoder_blocks=depth,
        ),
        motion=MotionConfig(
            dim=dim, bottleneck_dim=wide, bottleneck_blocks=blocks, attention_blocks=attention, memory_dim=dim
        ),
        dynamics=DynamicsConfig(dim=dim, blocks=depth),
    )


PRESETS = {
    "pico": ModelConfig(
        preset="pico",
        tokenizer=TokenizerConfig(encoder_dim=24, encoder_blocks=1, decoder_dim=24, decoder_blocks=1, fine_dim=16),
        camera=CameraConfig(middle_dim=12, whole_dim=4, hidden_dim=32, carry_dim=24),
        motion=MotionConfig(dim=24, bottleneck_dim=32, bottleneck_blocks=1, refine_blocks=1, memory_dim=16),
        ahead=AheadConfig(dim=16, glance_dim=12, code_dim=3),
        dynamics=DynamicsConfig(dim=16, blocks=1, event_dim=8),
    ),
    "nano": ModelConfig(
        motion=MotionConfig(dim=48, bottleneck_dim=96, bottleneck_blocks=2, memory_dim=64),
        dynamics=DynamicsConfig(dim=48, blocks=1),
    ),
    "small": _preset("small", (128, 128), 8, (192, 512, 3), 6, 2),
    "base": _preset("base", (256, 256), 8, (384, 1152, 4), 7, 3),
    "large": _preset("large", (288, 512), 16, (512, 1536, 5), 9, 4),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The configuration of a preset, with some fields replaced."""
    if name not in PRESETS:
        raise ConfigMismatch(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
