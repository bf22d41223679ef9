"""What an evaluation found, as a strict record. Horizons are keys as texts, since JSON has no others."""

import json

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1

# Rows of the table in order: name, what it is, unit, decimals.
ROWS: tuple[tuple[str, str, str, int], ...] = (
    ("psnr", "PSNR of the dream", "dB", 2),
    ("psnr_copy", "PSNR of copying the last context frame", "dB", 2),
    ("psnr_codec", "PSNR of the real frame through the tokenizer", "dB", 2),
    ("psnr_over_copy", "PSNR of the dream over copying", "dB", 2),
    ("psnr_seen", "PSNR on pixels that the context has shown", "dB", 2),
    ("seen_share", "share of such pixels", "", 2),
    ("camera", "distance of the dreamed camera from the real one", "px", 2),
    ("on_course", "share of cameras less than a pixel off", "", 2),
    ("ssim", "SSIM of the dream", "", 3),
    ("ssim_copy", "SSIM of copying", "", 3),
    ("ssim_codec", "SSIM of the tokenizer", "", 3),
    ("sharpness", "Laplacian energy, dream over real", "", 2),
    ("sharpness_codec", "Laplacian energy, tokenizer over real", "", 2),
    ("colour_distance", "share of pixels of another colour (512 bins)", "", 3),
    ("control", "PSNR lost with random actions", "dB", 2),
    ("idm", "true actions read from the dream (share, or R2)", "", 3),
    ("idm_real", "true actions read from real frames", "", 3),
    ("idm_over_real", "read from the dream over from real frames", "", 3),
    ("surprise", "mean entropy of a token", "nats", 3),
    ("age", "steps since the dream began, or began again", "", 0),
    ("rewarded", "share of dreams that have paid a reward", "", 2),
    ("rewarded_real", "share of real clips that have", "", 2),
    ("ended", "share of dreams that have ended", "", 2),
    ("ended_real", "share of real clips that have", "", 2),
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Strict):
    """A value and its 95 % bootstrap interval over clips; null where there is none, or where frames are identical and
    their PSNR is infinite."""

    value: float | None
    low: float | None = None
    high: float | None = None


class EventFigures(_Strict):
    """Events found within the tolerance, false and missed ones, and what follows from them."""

    precision: Figure
    recall: Figure
    f1: Figure
    false_per_1000_frames: Figure
    found: int
    false: int
    missed: int


class Distance(_Strict):
    """How far sets of dreamed clips are from sets of real ones, beside as many real ones (`against_floor`)."""

    dreamed: float
    floor: float
    over_floor: float | None  # null for a distance whose floor is about 0 by construction
    num_clips: int


class MemoryFigures(_Strict):
    """A walk to the right and back left, where the real camera left and came back."""

    walks: int
    returned: int  # of the real camera: only these count
    gone: Figure  # pixels that the real camera was away when the player turned; a wall may have stopped him
    psnr: Figure  # of the dream at the return, against the real frame there
    psnr_real: Figure  # of the real frame at the start, against that at the return: what a perfect memory would have
    place: Figure  # pixels that the dream is off the start, where registration is sure
    same: Figure  # share of dreams that are surely less than a pixel off


class Protocol(_Strict):
    """What decides the figures."""

    source: str  # of the real clips: the game, or the folder of a data set
    split: str | None  # whose levels; null where the data set does not tell
    policy: str | None  # null for a data set
    seed: int
    num_clips: int
    context: int  # real frames given
    horizon: int  # steps dreamed
    temperature: float
    termination_threshold: float
    draw_ends: bool = False  # the threshold decided nothing, but for dreams at temperature 0
    long_clips: int | None = None  # dreamed to the horizons beyond `horizon`; null without --full
    idm: str | None = None  # sha256 of the inverse-dynamics net
    i3d: str | None = None  # name of the I3D file


class Report(_Strict):
    """What `lwm evaluate` found. Horizons are keys as texts, since JSON has no others."""

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    world: str
    weights: str  # sha256 of the weight file
    protocol: Protocol
    running_clips: dict[str, int]  # horizon -> clips whose episode still runs; PSNR and figures up to 60 are of those
    rows: dict[str, dict[str, Figure]]  # see ROWS
    rewards: EventFigures
    terminations: EventFigures
    distances: dict[str, dict[str, Distance]] = Field(default_factory=dict)  # fd_idm, kd_idm, fvd_i3d -> frames
    memory: dict[str, MemoryFigures] = Field(default_factory=dict)  # steps to the right
    notes: tuple[str, ...] = ()  # what was not measured, and why
    curves: dict[str, list[float | None]]  # per step from 1, for the plots
    threshold_f1: list[float | None]  # termination F1 at thresholds 0.01 to 0.99, on these clips: not to choose by
    versions: dict[str, str]
    device: str
    seconds: dict[str, float]

    def to_json(self) -> str:
        """Strict JSON, without NaN."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
