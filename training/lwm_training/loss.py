"""What is minimised: the tokenizer's reconstruction, and the unrolled world on real continuations.

Shapes: B clips, T steps, P players, D latent dimensions, L levels, h x w cells.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.belief import Belief, Proposal
from lwm_env.errors import ConfigMismatch
from lwm_env.motion import FLOW, Hints
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, at, chosen_with, mean_valid, sightings
from lwm_training.beyond import Beyond, BeyondAbove, begin
from lwm_training.camera_loss import LOST, camera_errors, strayed_on
from lwm_training.flow_loss import flow_distance, flow_error
from lwm_training.picture_loss import changes, choice_error, codec_error, elsewhere, emphasis, lost_error, picture_error

if TYPE_CHECKING:
    from lwm_training.teacher import Teaching

TILES = 2.5  # times as much it counts to be astray where each tile is drawn at whole pixels
ASTRAY = 1.0  # pixels off the real camera from which on a dreamed picture is not compared with the real one


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each term counts; set in the recipe."""

    codec: float = 4.0
    edges: float = 2.0  # on differences of neighbouring pixels, beside every picture loss
    squared: float = 0.0  # of the squared error, beside every picture loss; absolute errors alone never learn a ball
    coarse: float = 1  # pixels averaged along a side before pictures are compared, so that texture teaches no blur
    changed: float = 0.0  # share of picture and token losses on what changed, where little does, such as a ball
    unlike: float = 0.0  # instead on what was seen before and looks otherwise now, wherever the camera goes
    ends: float = 0.0  # on latents near the ends of their range, where tanh has no gradient, beside the codec's loss
    moved: float = 4.0
    lost: float = 0.0  # of what is drawn nowhere near where it is, or is nowhere near where it is drawn
    spots: float = 1.0  # of a stage for the movers alone: where they stand; 0 leaves them there, which is faster
    course: float = 0.3  # and what becomes of them
    told: float = 0.3  # and what happens then
    choice: float = 0.0  # see `choice_error`
    flow: float = 4.0  # see `flow_error`
    motion: float = 1.0  # distance in pixels from the motion found by registration, where it is sure
    place: float = 1.0  # distance from the place that the camera was seen at, beyond the half pixel that is rounded
    tokens: float = 0.25
    strip: float = 4.0  # of a stage for what is drawn ahead, see `ahead_errors`
    code: float = 0.3
    palette: float = 0.5  # and how unlikely its tiles are
    drawn: float = 4.0
    reward: float = 0.1
    end: float = 0.1
    true_tokens: float = 0.3  # share of clips that are drawn from the true tokens instead of predicted ones
    guided: float = 0.6  # share of clips whose canvas follows the real camera, so that all pictures can be compared
    shown: float = 0.0  # share of these that are shown what comes into view, where what draws ahead does so: tiles
    # beyond the view (`Beyond`), else columns at the sides; of a camera's dreams, the share of all clips
    # With a teacher (`[distill]`):
    on_policy: float = 1.0  # share of clips that go on from what the model drew; the others go on from the real frames
    teacher_latent: float = 1.0
    teacher_tokens: float = 0.25
    teacher_drawn: float = 1.0
    teacher_hidden: float = 0.1
    teacher_reward: float = 0.1
    teacher_end: float = 0.1
    teacher_motion: float = 1.0

    @classmethod
    def from_recipe(cls, changes: dict[str, float]) -> "LossWeights":
        """The defaults with a stage's own weights; ConfigMismatch names what is unknown."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ConfigMismatch(f"unknown loss weights {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**changes)


def total_error(losses: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum of the terms."""
    return torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()


def moved_by(model: WorldModel, belief: Belief, proposal: Proposal) -> Sighting:
    """The whole pixels (B, 2) by which a proposal has moved the canvas: estimate and correction, less what is left; of
    a flow how it goes (B, motion_dim)."""
    sure = torch.ones_like(belief.offset[:, 0], dtype=torch.bool)
    if model.turns:
        return Sighting(model.motion.last_turn(proposal.memory).detach(), sure)
    if model.flows:
        return Sighting(proposal.estimate.detach(), sure)
    estimate, correction = proposal.motion.detach().chunk(2, dim=1)
    if model.lattice is not None:
        return Sighting(estimate + correction, sure)
    return Sighting((belief.offset + estimate + correction - proposal.offset).detach().round(), sure)


def guidance(
    model: WorldModel,
    belief: Belief,
    target: Tensor,
    camera: Sighting,
    guided: Tensor,
    shown: Tensor | None = None,
) -> tuple[Sighting, Hints]:
    """How the camera and the movers go to the target (B, 3, H, W), as far as it is seen and in `guided` clips (B,); and
    in clips that are `shown` (B,) them, the columns that come into view."""
    hints = Hints()
    if shown is not None:
        taken = (shown & guided & camera.sure)[:, None, None, None].expand_as(target[:, :1])
        hints = hints._replace(sides=torch.cat([target, taken.to(target.dtype)], 1))
    if model.motion.movers is not None:
        with torch.no_grad():
            movers = model.motion.sight_movers(belief.frames[:, -1], belief.memory, target)
        hints = hints._replace(movers=movers, led=guided)
    return camera._replace(sure=camera.sure & guided), hints


def led_step(
    model: WorldModel,
    belief: Belief,
    batch: Batch,
    t: int,
    camera: Sighting,
    guided: Tensor,
    shown: Tensor | None,
    beyond: Beyond | BeyondAbove | None,
) -> Proposal:
    """Step t of clips of which some are `guided` and some `shown` what comes into view, as `kinds_of` has them: from
    `beyond` the view, if that is known."""
    ahead, sides = (None, shown) if beyond is None else (beyond.at(t, shown & guided), None)
    camera, hints = guidance(model, belief, batch.pixels[:, t + 1], camera, guided, sides)
    return model.propose(belief, batch.actions[:, t], camera, hints, ahead)


def unlike(model: WorldModel, proposal: Proposal, target: Tensor) -> Tensor:
    """Where the moved canvas has something else than the target (B, 3, H, W), though it was seen: things that move by
    themselves, and what the dream has left out or left behind. 1 or 0, (B, 1, H, W)."""
    return changes(proposal.sources[:, 0].detach(), target) * seen_before(model, proposal)


def seen_before(model: WorldModel, proposal: Proposal) -> Tensor:
    """Where the moved canvas knows anything: 1 or 0, (B, 1, H, W)."""
    return (model.canvas.view(proposal.canvas)[:, 3:] > 0.5).to(proposal.moved.dtype)


class Drawn(NamedTuple):
    """What a step drew: the picture (B, 3, H, W), and the logits of reward (B, P, R) and end (B,) seen in it."""

    picture: Tensor
    reward: Tensor
    end: Tensor


def step_errors(
    model: WorldModel,
    proposal: Proposal,
    batch: Batch,
    t: int,
    weights: LossWeights,
    from_truth: Tensor,
    astray: Tensor,
) -> tuple[dict[str, Tensor], Drawn]:
    """Losses of the step to frame t + 1, `astray` (B,) pixels off the real camera; and what it drew."""
    tokenizer, target = model.tokenizer, batch.pixels[:, t + 1]
    seen_alike, alike = batch.valid[:, t] * (astray < ASTRAY), batch.valid[:, t] * (astray < LOST)
    with torch.no_grad():
        true_latent = tokenizer.quantize(tokenizer.encode(target))
        predicted = tokenizer.levels[proposal.logits.argmax(2)]
        from_truth = from_truth & (astray < ASTRAY)
        latent = torch.where(from_truth[:, None, None, None], true_latent, predicted)
    drawn = model.draw(proposal, latent)
    reward_logits, end_logit = model.happenings(proposal, latent)
    tokens = F.cross_entropy(proposal.logits.transpose(1, 2), tokenizer.indices(true_latent), reduction="none")
    rewards = F.cross_entropy(reward_logits.flatten(0, 1), batch.rewards[:, t].flatten(), reduction="none")
    ends = F.binary_cross_entropy_with_logits(end_logit, batch.ends[:, t], reduction="none")
    emphasised = None
    if weights.changed or weights.unlike:
        mask = changes(batch.pixels[:, t], target) if weights.changed else unlike(model, proposal, target)
        share = weights.changed or weights.unlike
        emphasised = emphasis(mask, share)
        tokens = tokens * emphasis(F.max_pool2d(mask, tokenizer.config.patch), share)

    def wrong(picture: Tensor) -> Tensor:
        side = int(weights.coarse)
        pictures = [None if x is None else F.avg_pool2d(x, side) for x in (picture, target, emphasised)]
        return mean_valid(picture_error(*pictures[:2], weights.edges, pictures[2], weights.squared), seen_alike)

    losses = {
        "moved": wrong(proposal.moved),
        "tokens": mean_valid(tokens, seen_alike),
        "drawn": wrong(drawn),
        "reward": mean_valid(rewards.view(len(alike), -1), alike),
        "end": mean_valid(ends, alike),
    }
    if model.motion.flow is not None:
        losses["flow"] = mean_valid(flow_error(proposal.sources[:, FLOW], target), seen_alike)
    if weights.lost:
        known = seen_before(model, proposal)
        lost = [lost_error(picture, target, known) for picture in (drawn, proposal.moved)]
        losses["lost"] = mean_valid(sum(lost), seen_alike)
    if weights.choice:
        error = choice_error(proposal.masks, proposal.sources, target, emphasised)
        losses["choice"] = mean_valid(error, seen_alike)
    return losses, Drawn(drawn, reward_logits, end_logit)


def kinds_of(batch: Batch, weights: LossWeights, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which clips are guided, which go on from what was drawn, and which are shown what comes into view, each bool
    (B,), drawn by chance; those that go on from real frames are guided."""
    guided, dreams = (chosen_with(share, batch, generator) for share in (weights.guided, weights.on_policy))
    shown = chosen_with(weights.shown, batch, generator) if weights.shown else None
    return guided | ~dreams, dreams, shown


def go_on(model: WorldModel, belief: Belief, proposal: Proposal, picture: Tensor, dreams: Tensor) -> Belief:
    """The belief with the next picture (B, 3, H, W), which is a real one where the clip is no dream (B,)."""
    belief = model.commit(belief, proposal, picture)
    memory = torch.where(dreams[:, None], belief.memory, model.motion.landed(belief.memory))
    return belief._replace(memory=memory)


def unroll_errors(
    model: WorldModel,
    batch: Batch,
    context: int,
    weights: LossWeights,
    generator: torch.Generator,
    teaching: "Teaching | None" = None,
) -> dict[str, Tensor]:
    """Losses of an unroll on the model's own frames, the mean over the steps after `context` frames.

    Clips that are not `on_policy` go on from the real frames: every step is a first one, as long as dreams are too poor
    to learn anything from.

    A dream that is a pixel off the real camera cannot be compared with the real frames: it would learn to blur. So some
    clips are guided by the real camera; the others go their own way, and their pictures count until they go astray.
    Likewise with movers: once a ball is elsewhere, drawing it where it really is would be learned as a fading ball. And
    a mask that often sees its copy a pixel off learns to mix it with others. So in guided clips movers go as they do.

    A teacher tells at every step what it would predict from where the student is, also where its own dream has
    led, however far from the real game that is.
    """
    steps = range(context - 1, batch.actions.shape[1])
    seen, belief, beyond = begin(model, batch, context, weights.shown > 0)
    guided, dreams, shown = kinds_of(batch, weights, generator)
    taught, parted = None, torch.zeros_like(dreams)
    if teaching is not None:
        taught = teaching.begin(batch, sightings(model, batch), context)
    astray, followed, totals = torch.zeros_like(belief.offset), torch.ones_like(guided), {}
    for t in steps:
        sighting = at(seen, t)
        proposal = led_step(model, belief, batch, t, sighting, guided, shown, beyond)
        followed = followed & (sighting.sure | guided)
        if model.flows:
            errors = {"motion": flow_distance(model.motion.flow, proposal.estimate, sighting)}
        else:
            errors = camera_errors(model, proposal.estimate, belief.offset, astray, sighting, followed)
            further = strayed_on(model, proposal.estimate, belief.offset, proposal.offset, astray, sighting).detach()
            astray = astray + torch.where((sighting.sure & ~guided)[:, None], further, 0)
        from_truth = chosen_with(weights.true_tokens, batch, generator)
        strayed = torch.where(parted, LOST, astray.abs().amax(1) * (1 if model.lattice is None else TILES))
        losses, drawn = step_errors(model, proposal, batch, t, weights, from_truth, strayed)
        losses |= {name: mean_valid(value, batch.valid[:, t]) for name, value in errors.items()}
        if model.motion.movers is not None:
            parted = parted | (dreams & elsewhere(drawn.picture.detach(), batch.pixels[:, t + 1]))
        picture = torch.where(dreams[:, None, None, None], drawn.picture.clamp(-1, 1), batch.pixels[:, t + 1])
        if teaching is not None:
            told = teaching.tell(taught, batch.actions[:, t], moved_by(model, belief, proposal))
            errors = teaching.step_errors(model, told, proposal, drawn, picture, weights.edges)
            losses |= {name: mean_valid(value, batch.valid[:, t]) for name, value in errors.items()}
            taught = teaching.follow(taught, told, picture)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value / len(steps)
        belief = go_on(model, belief, proposal, picture, dreams)
    some = batch.pixels[: -(-len(batch.pixels) // 4)]  # a quarter of the clips
    codec = codec_error(model.tokenizer, some[:, 0], some[:, 1], weights.edges, weights.changed, weights.squared)
    totals["codec"] = codec.mean()
    return totals
