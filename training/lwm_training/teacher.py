"""What a teacher world says about the states that its student is in: targets beside those of the real game.

The teacher follows the student: it sees every picture that the student goes on from, real or dreamed, moves its canvas
by the same whole pixels, and predicts the next step from there. So its targets lie where the student's predictions are,
also where no real frame can be compared with them any more.

Shapes: B clips, T steps, D latent dimensions, L levels, C channels, h x w cells; D', C', h' x w' those of the teacher.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env import worlds
from lwm_env.belief import Belief, Proposal
from lwm_env.errors import ConfigMismatch
from lwm_env.layers import Pointwise
from lwm_env.registration import Sighting
from lwm_env.spec import WorldSpec
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, context_belief
from lwm_training.camera_loss import motion_distance
from lwm_training.loss import Drawn
from lwm_training.picture_loss import picture_error


class Told(NamedTuple):
    """The teacher's own next step: its proposal and the picture (B, 3, H, W) that it would draw."""

    proposal: Proposal
    picture: Tensor


class CameraState(NamedTuple):
    """What the teacher's camera carries along a clip: offset (B, 2), motion (B, 2 + 2), carry (B, carry_dim')."""

    offset: Tensor
    motion: Tensor
    carry: Tensor


class Teaching(nn.Module):
    """A frozen teacher and the adapters to it. The adapters are trained and kept in checkpoints, not in the world; of
    the teacher nothing is kept but what `facts` tells."""

    def __init__(self, teacher: WorldModel, student: WorldModel) -> None:
        super().__init__()
        self._teacher = (teacher,)  # in a tuple it is no submodule: not saved, not spread over devices, not trained
        self.shares_tokens = False
        ours, theirs = student.config, teacher.config
        if ours.tokenizer.latent_dim == theirs.tokenizer.latent_dim:
            self.latent_adapter: nn.Module = nn.Identity()
        else:
            self.latent_adapter = Pointwise(ours.tokenizer.latent_dim, theirs.tokenizer.latent_dim)
        self.hidden_adapter = Pointwise(ours.dynamics.dim, theirs.dynamics.dim)

    @property
    def teacher(self) -> WorldModel:
        return self._teacher[0]

    def compare_tokens(self, student: WorldModel) -> None:
        """Find out whether a token means the same to both, which needs the same encoder, one that is not trained."""
        theirs, ours = self.teacher.tokenizer.encoder.state_dict(), student.tokenizer.encoder.state_dict()
        frozen = not any(parameter.requires_grad for parameter in student.tokenizer.encoder.parameters())
        alike = student.config.tokenizer.levels == self.teacher.config.tokenizer.levels and theirs.keys() == ours.keys()
        self.shares_tokens = (
            frozen
            and alike
            and all(
                ours[name].shape == tensor.shape and bool((ours[name] == tensor).all())
                for name, tensor in theirs.items()
            )
        )

    # -- tokenizer ---------------------------------------------------------------------------------------------------

    def latent_error(self, student: WorldModel, pixels: Tensor) -> Tensor:
        """Squared distance of the student's latents, through the adapter, from the teacher's, of (B, 3, H, W)."""
        with torch.no_grad():
            target = self.teacher.tokenizer.encode(pixels)
        latent = student.tokenizer.encode(pixels)
        return F.mse_loss(self.latent_adapter(on_grid(latent, target.shape[-2:])), target)

    # -- dynamics ----------------------------------------------------------------------------------------------------

    def begin(self, batch: Batch, seen: Sighting, context: int) -> Belief:
        """The teacher's belief after the first `context` real frames."""
        return context_belief(self.teacher, batch, seen, context)

    @torch.no_grad()
    def tell(self, belief: Belief, action: Tensor, moved_by: Sighting) -> Told:
        """What the teacher would draw next if it is led as the student was moved, see `loss.moved_by`."""
        proposal = self.teacher.propose(belief, action, moved_by)
        latent = self.teacher.tokenizer.levels[proposal.logits.argmax(2)]
        return Told(proposal, self.teacher.draw(proposal, latent).clamp(-1, 1))

    def step_errors(
        self, student: WorldModel, told: Told, proposal: Proposal, drawn: Drawn, picture: Tensor, edges: float
    ) -> dict[str, Tensor]:
        """Distance of the student's step from what the teacher told, per clip: (B,) each.

        Args:
            picture: what both go on from, (B, 3, H, W): the teacher sees reward and end in it.
        """
        theirs = told.proposal
        with torch.no_grad():
            seen = self.teacher.tokenizer.quantize(self.teacher.tokenizer.encode(picture))
            reward, end = self.teacher.happenings(theirs, seen)
            hidden = F.layer_norm(theirs.hidden.movedim(1, -1), theirs.hidden.shape[1:2]).movedim(-1, 1)
        ours = self.hidden_adapter(on_grid(proposal.hidden, hidden.shape[-2:]))
        return {
            "teacher_tokens": self._token_error(student, told, proposal.logits).mean((1, 2, 3)),
            "teacher_drawn": picture_error(drawn.picture, told.picture, edges),
            "teacher_hidden": (ours - hidden).square().mean((1, 2, 3)),
            "teacher_reward": divergence(reward, drawn.reward, -1).mean(1),
            "teacher_end": F.binary_cross_entropy_with_logits(drawn.end, torch.sigmoid(end), reduction="none"),
            "teacher_motion": motion_distance(proposal.estimate, theirs.estimate),
        }

    def _token_error(self, student: WorldModel, told: Told, logits: Tensor) -> Tensor:
        """(B, D, h, w): the divergence from the teacher's distribution, or, where tokens are not shared, from those
        that the student's own tokenizer makes of the teacher's picture."""
        if self.shares_tokens:
            return divergence(told.proposal.logits, logits, 2)
        with torch.no_grad():
            target = student.tokenizer.indices(student.tokenizer.encode(told.picture))
        return F.cross_entropy(logits.transpose(1, 2), target, reduction="none")

    def follow(self, belief: Belief, told: Told, picture: Tensor) -> Belief:
        """The teacher's belief once it has seen the picture that the student goes on from."""
        return self.teacher.commit(belief, told.proposal, picture)

    # -- camera ------------------------------------------------------------------------------------------------------

    def begin_camera(self, picture: Tensor) -> CameraState:
        """Before a clip's first picture (B, 3, H, W)."""
        blank = self.teacher.believe(picture)
        return CameraState(blank.offset, blank.motion, blank.carry)

    @torch.no_grad()
    def look(self, state: CameraState, picture: Tensor, action: Tensor, moved_by: Tensor) -> tuple[Tensor, CameraState]:
        """The motion (B, 2) that the teacher's camera expects; its place is corrected to the student's whole pixels."""
        embedded = self.teacher.embed(action)
        with torch.autocast(picture.device.type, enabled=False):  # as the student's
            estimate, carry = self.teacher.camera(picture.float(), embedded, state.motion, state.offset, state.carry)
        sure = torch.ones(len(moved_by), dtype=torch.bool, device=moved_by.device)
        _, motion, offset = self.teacher.correct(state.offset, estimate, Sighting(moved_by, sure))
        return estimate, CameraState(offset, motion, carry)

    # -- provenance --------------------------------------------------------------------------------------------------

    def facts(self, manifest: worlds.Manifest) -> dict[str, Any]:
        """What the student's world.json says about the teacher."""
        return {
            "world": manifest.spec.id,
            "weights": self.teacher.weights_hash,
            "preset": self.teacher.config.preset,
            "parameters": sum(parameter.numel() for parameter in self.teacher.parameters()),
            **{key: manifest.provenance.get(key) for key in ("source", "licences", "restricted", "recipe_sha256")},
        }


def open_teacher(name: str, student: WorldModel, device: torch.device) -> tuple[Teaching, dict[str, Any]]:
    """The teacher of a recipe, with what world.json will say of it.

    Raises:
        ConfigMismatch: its frames, players, actions or rewards are not the student's.
        And what `WorldModel.load` raises.
    """
    folder = worlds.find(name)
    manifest = worlds.read_manifest(folder)
    _check_alike(manifest.spec, student.spec)
    teaching = Teaching(WorldModel.load(folder, device), student)
    return teaching, teaching.facts(manifest)


def take_parts(student: WorldModel, teacher: WorldModel, parts: tuple[str, ...]) -> None:
    """Copy parts of the teacher into the student; ConfigMismatch where their shapes differ."""
    for part in parts:
        given = getattr(teacher, part).state_dict()
        own = getattr(student, part).state_dict()
        differing = sorted(name for name in {*given, *own} if _shape(given, name) != _shape(own, name))
        if differing:
            raise ConfigMismatch(
                f"distill.take names the {part}, but the student's has another shape than the teacher's at "
                f"{', '.join(differing[:3])}. Give the recipe the teacher's {part} settings, or leave it out of take."
            )
        getattr(student, part).load_state_dict(given)


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _check_alike(teacher: WorldSpec, student: WorldSpec) -> None:
    pairs = {
        "frame_size": (tuple(teacher.frame_size), tuple(student.frame_size)),
        "players": (len(teacher.players), len(student.players)),
        "actions": (teacher.actions.meanings, student.actions.meanings),
        "reward_values": (teacher.reward_values, student.reward_values),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ConfigMismatch(
                f"the teacher {teacher.id} has {name} {theirs}, the student {student.id} has {ours}. A world can teach "
                f"only one with the same; give the recipe the teacher's [world], or render clips: lwm distill --help"
            )


def on_grid(features: Tensor, cells: tuple[int, int]) -> Tensor:
    """Features (B, C, h, w) on another grid of cells: averaged where it is coarser, interpolated where it is finer."""
    if tuple(features.shape[-2:]) == tuple(cells):
        return features
    if features.shape[-1] > cells[-1]:
        return F.adaptive_avg_pool2d(features, cells)
    return F.interpolate(features, cells, mode="bilinear", align_corners=False)


def divergence(teacher: Tensor, student: Tensor, dim: int) -> Tensor:
    """Kullback-Leibler divergence, in nats, of the student's logits from the teacher's; `dim` is summed away."""
    ours, theirs = student.log_softmax(dim), teacher.log_softmax(dim)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim)
