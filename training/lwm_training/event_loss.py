"""What teaches the head of rewards and ends by itself, in dreams of a world that is trained already: nothing is drawn
better by it, so a step costs a third of one that is.

Shapes: B clips of T steps, P players.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, at, mean_valid
from lwm_training.beyond import begin
from lwm_training.camera_loss import LOST, strayed_on
from lwm_training.loss import LossWeights, go_on, kinds_of, led_step


def event_errors(
    model: WorldModel, batch: Batch, context: int, weights: LossWeights, generator: torch.Generator
) -> dict[str, Tensor]:
    """Cross-entropies of rewards and ends after `context` frames, seen in the model's likeliest pictures, as long as a
    dream has not lost the real camera; `guided`, `shown` and `on_policy` clips as in `unroll_errors`."""
    told, counted = [], []
    with torch.no_grad():
        seen, belief, beyond = begin(model, batch, context, weights.shown > 0)
        guided, dreams, shown = kinds_of(batch, weights, generator)
        astray = torch.zeros_like(belief.offset)
        for t in range(context - 1, batch.actions.shape[1]):
            target, sighting = batch.pixels[:, t + 1], at(seen, t)
            proposal = led_step(model, belief, batch, t, sighting, guided, shown, beyond)
            latent = model.tokenizer.levels[proposal.logits.argmax(2)]
            if not model.flows:
                strayed = strayed_on(model, proposal.estimate, belief.offset, proposal.offset, astray, sighting)
                astray = astray + torch.where((sighting.sure & ~guided)[:, None], strayed, 0)
            told.append((proposal.hidden, proposal.moved_latent, latent, proposal.told))
            counted.append(batch.valid[:, t] * (astray.abs().amax(1) < LOST))
            drawn = model.draw(proposal, latent).clamp(-1, 1)
            picture = torch.where(dreams[:, None, None, None], drawn, target)
            belief = go_on(model, belief, proposal, picture, dreams)
    reward_logits, end_logits = model.events(*(torch.cat(part) for part in zip(*told, strict=True)))
    rewards, ends = (kind[:, context - 1 :].transpose(0, 1).flatten(0, 1) for kind in (batch.rewards, batch.ends))
    reward = F.cross_entropy(reward_logits.flatten(0, 1), rewards.flatten(), reduction="none").view(rewards.shape)
    end = F.binary_cross_entropy_with_logits(end_logits, ends, reduction="none")
    return {"reward": mean_valid(reward, torch.cat(counted)), "end": mean_valid(end, torch.cat(counted))}
