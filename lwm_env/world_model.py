"""Tokenizer, motion, dynamics and canvas as one functional core: a state and an action give the next state and frame.

Shapes: B worlds, K context frames, P players, D latent dimensions, L levels, h x w cells.
`Belief` holds floats and carries gradients (training); the state that users keep is a dict of compact tensors.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env import worlds
from lwm_env.above import Above
from lwm_env.ahead import Ahead
from lwm_env.ahead_tiles import AheadTiles
from lwm_env.belief import Anticipation, Belief, Output, Proposal, State
from lwm_env.camera import Camera
from lwm_env.dynamics import Dynamics, EventHead, mean_entropy
from lwm_env.errors import ConfigMismatch, CorruptFile
from lwm_env.flow import RIGID
from lwm_env.lattice import Lattice
from lwm_env.memory import Canvas, move_lines, to_bytes
from lwm_env.motion import Hints, Motion
from lwm_env.movers import FATES
from lwm_env.presets import ModelConfig
from lwm_env.prompts import PROMPTS, Prompts, read_prompts
from lwm_env.registration import Sighting
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_env.tokenizer import Tokenizer, to_frames, to_pixels
from lwm_env.whole_pixels import WholePixels

# A forked child inherits torch's thread pool in a state that hangs it (pytorch#17199).
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

WEIGHTS = "model.safetensors"
NO_HINTS = Hints()


class WorldModel(nn.Module):
    """A learned world: `start` from frames, then `step` with actions."""

    def __init__(self, config: ModelConfig, spec: WorldSpec) -> None:
        super().__init__()
        if tuple(config.frame_size) != tuple(spec.frame_size):
            raise ConfigMismatch(
                f"the model draws {config.frame_size} frames but the world {spec.id} has {spec.frame_size}. "
                f"Set frame_size alike in both."
            )
        self.config, self.spec = config, spec
        self.prompts: Prompts | None = None
        self.weights_hash = ""
        players, latent_dim = len(spec.players), config.tokenizer.latent_dim
        self.action_dim = players * spec.actions.dim
        self.canvas = Canvas(config.frame_size, config.margin)
        self.tokenizer = Tokenizer(config.tokenizer)
        self.camera = Camera(config.camera, config.frame_size, self.action_dim)
        self.lattice: Lattice | None = None
        if config.camera.lattice:
            self.lattice = Lattice(config.camera.lattice, config.frame_size, config.margin, config.camera.edges)
        self.scrolling = self.lattice or WholePixels(still=not config.camera.max_motion)
        num_events = players * len(spec.reward_values) + 1
        self.motion = Motion(config.motion, config.tokenizer.patch, config.cells, self.action_dim, num_events)
        self.turns, self.flows = config.motion.flow == RIGID, config.motion.flow != 0
        self.ahead: Ahead | Above | AheadTiles | None = None
        if config.ahead.tiles:
            self.ahead = AheadTiles(config.ahead, self.lattice)
        elif config.ahead.width:
            kind = Above if self.turns else Ahead
            self.ahead = kind(config.ahead, config.tokenizer.patch, config.frame_size, config.margin)
        self.dynamics = Dynamics(config.dynamics, self.tokenizer.levels, latent_dim, config.motion.dim)
        self.events = EventHead(config.dynamics, latent_dim, config.cells, players, len(spec.reward_values))
        self.register_buffer("reward_values", torch.tensor(spec.reward_values), persistent=False)

    @property
    def token_shape(self) -> tuple[int, int, int, int]:
        """(D, L, h, w)."""
        return (self.config.tokenizer.latent_dim, self.config.tokenizer.levels, *self.config.cells)

    @property
    def noise_dim(self) -> int:
        """How many Gumbel numbers a step samples with: one for each code of what is drawn ahead, or, where nothing is,
        for each level of each token; and then for each fate of each mover."""
        return self._picture_noise + FATES * self.config.motion.movers

    @property
    def _picture_noise(self) -> int:
        return self.ahead.noise_dim if self.ahead is not None else math.prod(self.token_shape)

    # -- the core, with gradients ------------------------------------------------------------------------------------

    def embed(self, action: Tensor) -> Tensor:
        """Actions (B, P) of indices or (B, P, A) of numbers -> (B, action_dim)."""
        if isinstance(self.spec.actions, DiscreteActions):
            return F.one_hot(action.long(), self.spec.actions.dim).flatten(1).to(self.reward_values.dtype)
        return action.flatten(1).to(self.reward_values.dtype)

    def believe(self, picture: Tensor) -> Belief:
        """The belief after one picture (B, 3, H, W) and nothing before it."""
        still = picture.new_zeros(len(picture), 2)
        canvas = self.canvas.blank(len(picture), picture.device)
        frames = picture[:, None].expand(-1, self.config.motion.context_frames, -1, -1, -1)
        carry = picture.new_zeros(len(picture), self.config.camera.carry_dim)
        memory = picture.new_zeros(len(picture), self.motion.kept_dim)
        return Belief(frames, canvas, still, still.repeat(1, 2), carry, memory)

    def commit(self, belief: Belief, proposal: Proposal, picture: Tensor) -> Belief:
        """The belief once the next picture is drawn. Gradients flow on through motion, carry, memory and what the
        canvas kept, not through the picture."""
        frames = torch.cat([belief.frames[:, 1:], picture.detach()[:, None]], 1)
        return Belief(frames, proposal.canvas, proposal.offset, proposal.motion, proposal.carry, proposal.memory)

    def correct(self, offset: Tensor, estimate: Tensor, sighting: Sighting | None) -> tuple[Tensor, Tensor, Tensor]:
        """An offset and an estimated motion (B, 2) -> whole pixels to move by, the estimate with its correction
        (B, 2 + 2), and the offset that is left. A sighting overrules the estimate; gradients flow to it."""
        return self.scrolling.correct(offset, estimate, sighting)

    def anticipate(
        self,
        belief: Belief,
        action: Tensor,
        sighting: Sighting | None = None,
        hints: Hints = NO_HINTS,
        ahead: Callable[..., Tensor] | None = None,
    ) -> Anticipation:
        """Where the camera goes, and the canvas there, with the last picture painted on it. A `sighting` of the real
        next frame, (B, 2) or of a flow (B, motion_dim), corrects the estimate; `hints` are of the movers. What draws
        `ahead` does so on the canvas before it moves by whole pixels (B, 2) from its offset, or, in a view that turns,
        above the last picture. There the canvas is a map, see `Ground`."""
        action = self.embed(action)
        last = belief.frames[:, -1]
        turned, sighting = (sighting, None) if self.flows else (None, sighting)
        estimate, carry = self.camera(last, action, belief.motion, belief.offset, belief.carry)
        pixels, motion, offset = self.correct(belief.offset, estimate, sighting)
        scroll = self.scrolling.scroll(belief.offset, pixels, offset)
        hints = hints._replace(turned=turned)
        if self.turns:
            hints = hints._replace(ground=self.surveyed(belief, ahead))
        reading = self.motion.read(belief.frames, action, scroll.travel, scroll.fraction, belief.memory, hints)
        if self.turns:
            before = canvas = reading.ground
        else:
            before = self.canvas.write(belief.canvas, last, self.motion.lasting(reading.features))
            if ahead is not None:
                before = ahead(before, scroll.towards, belief.offset)
            canvas = move_lines(before, scroll.down, scroll.right)
        if hints.sides is not None:
            canvas = self.canvas.fill_sides(canvas, hints.sides, scroll.right)
        estimate = reading.turn if self.flows else estimate
        return Anticipation(reading, estimate, motion, scroll.travel, carry, before, canvas, offset)

    def surveyed(self, belief: Belief, ahead: Callable[..., Tensor] | None = None) -> Tensor:
        """The map of a view that turns with the last picture laid on it, and what is drawn `ahead` above it."""
        ground, aspect = self.motion.flow.ground, self.motion.flow.aspect.detach().exp()
        pose, last, above = self.motion.pose(belief.memory), belief.frames[:, -1], None
        if ahead is not None:
            sizes = self.config.ahead
            around = ground.around(sizes.width, sizes.reach, sizes.beside)
            shown, known = ground.read(belief.canvas, pose, aspect, around)
            above = ahead(torch.cat([shown * known, known], 1), last)
        return ground.write(belief.canvas, last, pose, aspect, above)

    def sight(self, before: Tensor, after: Tensor) -> Sighting:
        """How the camera went between two real pictures (B, 3, H, W): by registration, unless it stands still. A field
        is not looked for here."""
        if self.turns:
            return self.motion.flow.sight(before, after)
        if self.flows:
            dim = self.motion.flow.motion_dim
            return Sighting(before.new_zeros(len(before), dim), before.new_zeros(len(before), dtype=torch.bool))
        return self.scrolling.sight(before, after)

    @torch.no_grad()
    def observe(self, belief: Belief, action: Tensor, picture: Tensor, sighting: Sighting | None = None) -> Belief:
        """Go on from a real frame instead of a drawn one; `sighting` is found by registration if it is not given."""
        sighting = sighting or self.sight(belief.frames[:, -1], picture)
        doubt = None
        if self.lattice is not None and sighting.cost is not None:
            embedded = self.embed(action)
            estimate, _ = self.camera(belief.frames[:, -1], embedded, belief.motion, belief.offset, belief.carry)
            phase, doubt = self.lattice.settle(belief.doubt, estimate, sighting)
            belief = belief._replace(offset=torch.where(sighting.sure[:, None], phase, belief.offset))
        ahead = self.anticipate(belief, action, sighting)
        frames = torch.cat([belief.frames[:, 1:], picture[:, None]], 1)
        memory, canvas = self.motion.landed(ahead.reading.memory), ahead.canvas
        if self.turns:
            flow = self.motion.flow
            canvas = flow.ground.write(canvas, picture, self.motion.pose(memory), flow.aspect.exp(), replace=True)
        return Belief(frames, canvas, ahead.offset, ahead.motion, ahead.carry, memory, doubt)

    def propose(
        self,
        belief: Belief,
        action: Tensor,
        sighting: Sighting | None = None,
        hints: Hints = NO_HINTS,
        ahead: Callable[..., Tensor] | None = None,
    ) -> Proposal:
        """Everything about the next step that is known before its tokens are sampled; the rest as for `anticipate`."""
        next_ = self.anticipate(belief, action, sighting, hints, ahead)
        offset = next_.offset.detach()
        if self.turns:  # pictures are read from the map already
            views = self.canvas.views(torch.zeros_like(next_.canvas), offset)
        else:
            views = self.scrolling.views(self.canvas, next_._replace(offset=offset), hints.sides)
        composed = self.motion.compose(next_.reading, belief.frames[:, -1], views, self.embed(action), next_.travel)
        moved_latent = self.tokenizer.encode(composed.picture)
        logits, hidden = self.dynamics(composed.features, moved_latent)
        return Proposal(
            next_.estimate, next_.motion, next_.canvas, next_.offset, next_.carry, next_.reading.memory,
            composed.picture, moved_latent, logits, hidden, composed.masks, composed.sources,
            next_.reading.empty, next_.reading.told,
        )  # fmt: skip

    def draw(self, proposal: Proposal, latent: Tensor) -> Tensor:
        """The next picture (B, 3, H, W), drawn from `latent` (B, D, h, w); background where nothing else can be, and
        what is mounted on a view that turns, see `Ground`."""
        drawn = self.tokenizer.decode(latent, proposal.moved)
        if self.turns:
            drawn = self.motion.flow.ground.restore(drawn)
        if self.motion.movers is None:
            return drawn
        return torch.where(proposal.empty, self.motion.movers.appearance.background[:3], drawn)

    def happenings(self, proposal: Proposal, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Reward logits (B, P, R) and end logit (B,) of a step whose picture was drawn from `latent` (B, D, h, w)."""
        return self.events(proposal.hidden, proposal.moved_latent, latent, proposal.told)

    def sample(self, logits: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """Token indices (B, D, h, w): the likeliest, or drawn by Gumbel noise (B, noise_dim) at a temperature, which is
        for the codes where something is drawn ahead."""
        if self.ahead is None and noise is not None and temperature > 0:
            logits = logits + temperature * noise.view(logits.shape)
        return logits.argmax(2)

    # -- the interface of the engine ---------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, frames: Tensor, actions: Tensor) -> State:
        """State after T real frames.

        Args:
            frames: uint8 (B, T, H, W, 3), T >= 1.
            actions: (B, T - 1, P) indices or (B, T - 1, P, A) numbers; actions[t] led from frame t to t + 1.
        """
        pixels = to_pixels(frames)
        belief = self.believe(pixels[:, 0])
        for t in range(frames.shape[1] - 1):
            belief = self.observe(belief, actions[:, t], pixels[:, t + 1])
        return self._pack(to_frames(belief.frames), belief)

    @torch.no_grad()
    def step(
        self, state: State, action: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> tuple[State, Output]:
        """One step of B worlds; see `Output`. Randomness comes only from `noise` (B, noise_dim), Gumbel numbers."""
        belief = self._unpack(state)
        ahead, hints = None, NO_HINTS
        if noise is not None:
            noise, chance = noise.tensor_split([self._picture_noise], 1)
            hints = Hints(chance=temperature * chance)
        if self.ahead is not None:
            ahead = partial(self.ahead, noise=noise, temperature=temperature)
        proposal = self.propose(belief, action, hints=hints, ahead=ahead)
        latent = self.tokenizer.levels[self.sample(proposal.logits, noise, temperature)]
        frame = to_frames(self.draw(proposal, latent))
        reward_logits, end_logit = self.happenings(proposal, latent)
        reward_probs = reward_logits.softmax(-1)
        output = Output(
            frame=frame,
            reward=self.reward_values[reward_probs.argmax(-1)],
            reward_probs=reward_probs,
            terminated_prob=torch.sigmoid(end_logit),
            surprise=mean_entropy(proposal.logits),
        )
        return self._pack(torch.cat([state["frames"][:, 1:], frame[:, None]], 1), proposal), output

    @staticmethod
    def _pack(frames: Tensor, known: Belief | Proposal) -> State:
        """Frames uint8 (B, K, H, W, 3), and what else is known."""
        return {
            "frames": frames,
            "canvas": to_bytes(known.canvas),
            "offset": known.offset.clone(),
            "motion": known.motion.clone(),
            "carry": torch.cat([known.carry, known.memory], 1),
        }

    def _unpack(self, state: State) -> Belief:
        carry, memory = state["carry"].split([self.config.camera.carry_dim, self.motion.kept_dim], 1)
        return Belief(to_pixels(state["frames"]), state["canvas"], state["offset"], state["motion"], carry, memory)

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, provenance: dict[str, Any]) -> None:
        """Write a world folder: weights as float16, the prompt bank, and world.json with their hashes."""
        weights = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        files = {WEIGHTS: safetensors.torch.save(weights)}
        if self.prompts is not None:
            files[PROMPTS] = safetensors.torch.save({"frames": self.prompts.frames, "actions": self.prompts.actions})
        worlds.write_world(path, spec=self.spec, model=self.config.to_json(), provenance=provenance, files=files)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "WorldModel":
        """The model of a world folder (or shipped world), checked against its manifest, in float32 and eval mode.

        Raises:
            UnknownWorld, CorruptFile, ConfigMismatch: see `lwm_env.worlds`.
        """
        folder = worlds.find(path)
        manifest = worlds.verify(folder)
        if WEIGHTS not in manifest.files:
            raise CorruptFile(f"{folder} lists no {WEIGHTS} in world.json. Restore it from where the world came from.")
        config = ModelConfig.from_json(manifest.model)
        with torch.device("meta"):  # shapes only, until the file is known to fit
            expected = {
                name: (tuple(t.shape), "float16") for name, t in cls(config, manifest.spec).state_dict().items()
            }
        weights = worlds.read_tensors(folder / WEIGHTS, expected)
        model = cls(config, manifest.spec)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})  # to float32
        model.prompts = read_prompts(folder, manifest) if PROMPTS in manifest.files else None
        model.weights_hash = manifest.files[WEIGHTS].sha256
        return model.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
