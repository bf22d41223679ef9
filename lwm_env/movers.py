"""Things that move by themselves, each as a copy of the whole last picture shifted as the thing moves.

A ball, a paddle, an opponent: the network finds the place of each in the last frames, and tells from the places, the
action and what it carries what becomes of each: how far it moves, as a distribution over whole pixels (a separable form
of Finn et al., 2016, arXiv:1605.07157), of which the likeliest is taken; that it is gone; or where it comes from
nowhere. Masks then choose the copy around the thing, so nothing has to be drawn anew at whatever pixel it stands, but
what comes. A mover is one thing, since it counts for little far from where it is. What has happened is told from the
same numbers. In a dream it is where it went: if it was not drawn there, it is drawn as it usually looks, and outside of
all outlines is the background.

Shapes: B worlds, K context frames, M movers, R pixels of reach, H x W pixels, E logits of events.
"""

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.appearance import Appearance, offsets
from lwm_env.eyes import Eyes, Places
from lwm_env.layers import sine_and_cosine

WIDE = 0.1  # how fast the distribution falls off at first: so slowly that every motion within reach is felt
CARRY = 128  # numbers kept from step to step: what no frame shows, such as a knob turned beyond the field's end
FOLLOWED = (2, 2, 2, 1)  # numbers kept of a mover: its motion as foretold, place, speed, how long ago it was there
HIDDEN = 256  # numbers that what becomes of the movers is told from
APART = 1.0  # pixels at most between a mover, which goes by whole ones, and where it is thought to be
SEEN = 0.3  # share of what there usually is of a mover that must be where it went in a dream, or it is drawn again
BESIDE = 5  # pixels from where it went within which that is looked for
FATES = 3  # what becomes of a mover: it moves on, it is in another place, it is not there
GOES, COMES, GONE = range(FATES)
NEVER = 1e4  # nats by which what cannot be is less likely
WAVELENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # pixels, of the waves that tell a place exactly
TOUCHES = (2.0, 4.0, 8.0, 16.0)  # and of those that tell how two movers lie to each other
NEAR = 16.0  # pixels apart from which on two movers do not count for each other
WAITS = (8.0, 32.0, 128.0)  # steps, of the waves that tell how long ago a mover was there
AGEING = 0.5  # how much of a mover's speed is that of its last step


class Foresight(NamedTuple):
    """Logits of what becomes of each mover."""

    fates: Tensor  # (B, M, FATES)
    shifts: Tensor  # (B, M, 2, 2R + 1), down and right, if it goes
    rows: Tensor  # (B, M, H), where it is if it comes
    columns: Tensor  # (B, M, W)
    events: Tensor  # (B, E), of rewards and the end


class Going(NamedTuple):
    """What becomes of each mover."""

    fates: Tensor  # (B, M), GOES, COMES or GONE
    shifts: Tensor  # (B, M, 2) whole pixels down and right
    spots: Tensor  # (B, M, 2) where it comes, as `Places` counts


class Movers(Eyes):
    """Where each mover is, where it goes in this step, and what the last picture looks like there."""

    def __init__(
        self,
        count: int,
        reach: int,
        context_frames: int,
        frame_size: tuple[int, int],
        condition_dim: int,
        num_events: int,
    ) -> None:
        super().__init__(count, frame_size)
        self.reach = reach
        course_dim = count * (3 * context_frames + 4 + 4 * len(WAVELENGTHS) + 2 * len(WAITS))
        pairs = torch.tensor([*itertools.combinations(range(count), 2)]).long().view(-1, 2)
        self.register_buffer("pairs", pairs, persistent=False)
        course_dim += len(self.pairs) * (3 + 4 * len(TOUCHES))
        self.carry_dim = CARRY + sum(FOLLOWED) * count
        self.places_dim = context_frames * 3 * count + 2
        self.appearance = Appearance(count, frame_size)
        self.enter = nn.Linear(course_dim, HIDDEN)
        self.condition = nn.Linear(condition_dim, HIDDEN)
        self.think = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU())
        self.remember = nn.GRUCell(HIDDEN + condition_dim, CARRY)
        self.decide = nn.Sequential(nn.Linear(HIDDEN + CARRY, HIDDEN), nn.SiLU())
        self.out = nn.Linear(HIDDEN, 2 * count * (2 * reach + 3))
        nn.init.zeros_(self.out.bias)
        self.become = nn.Linear(HIDDEN, count * (FATES + sum(frame_size)) + num_events)
        self.register_buffer("shifts", torch.arange(-reach, reach + 1.0), persistent=False)

    def recall(self, looks: Tensor, kept: Tensor) -> tuple[Places, Tensor]:
        """The places in K frames, of how the last one looks (B, M, H, W) and what was kept (B, places_dim), and which
        movers are missing there (B, M). In a real frame, and in the first, movers are looked for. In a dream they are
        where they went, or a little beside it, if they were drawn there; if not, they are missing."""
        past, aware = kept.tensor_split([-2], 1)
        past = past.unflatten(1, (-1, self.count, 3))
        began, dreams = aware[..., None, None].unbind(1)
        went, goes_on = past[:, -1].split([2, 1], 2)
        down, right = (x.abs() <= BESIDE for x in offsets(went, self.frame_size))
        amounts, beside = self.middle(looks * (down[..., None] & right[..., None, :]))
        drawn = (amounts > SEEN * self.common)[..., None]
        astray = drawn & ((beside - went).abs().amax(2, keepdim=True) > APART)
        own = torch.cat([torch.where(astray, beside, went) * goes_on, goes_on], 2)
        found = self.find(looks[:, None])
        now = torch.where(dreams > 0, own, torch.cat([found.places[:, 0], found.there[:, 0, :, None]], 2))[:, None]
        past = torch.where(began[..., None] > 0, past[:, :-1], now)
        places, there = torch.cat([past, now], 1).split([2, 1], 3)
        missing = (dreams * goes_on > 0) & ~drawn
        return Places(places, there[..., 0]), missing[..., 0]

    def keep(self, found: Places, going: Going) -> Tensor:
        """The places in K frames, and what becomes of the movers, for `recall` a step later: (B, places_dim)."""
        will_be, there = self.arrive(found.places[:, -1], going)
        past = torch.cat([found.places, found.there[..., None]], 3)[:, 1:]
        after = torch.cat([will_be, there[..., None]], 2)[:, None]
        return F.pad(torch.cat([past, after], 1).flatten(1), (0, 2), value=1.0)

    @staticmethod
    def landed(kept: Tensor) -> Tensor:
        """What was kept (B, places_dim) once the next picture is a real one."""
        return torch.cat([kept[:, :-1], torch.zeros_like(kept[:, -1:])], 1)

    @staticmethod
    def arrive(place: Tensor, going: Going) -> tuple[Tensor, Tensor]:
        """Where movers at a place (B, M, 2) are next, and whether they are there (B, M)."""
        goes, comes = (going.fates == fate for fate in (GOES, COMES))
        will_be = torch.where(comes[..., None], going.spots, place + going.shifts * goes[..., None])
        there = (goes | comes).to(place.dtype)
        return will_be * there[..., None], there

    def follow(self, own: Tensor, place: Tensor, before: Tensor, after: Tensor) -> Going:
        """What becomes of movers at `own` places (B, M, 2) that are at `place` (B, M, 2) next, and are there `before`
        and `after` (B, M): they go by the whole pixels that keep them nearest, if these are within reach."""
        shifts = (place - own).round()
        goes = (before * after > 0) & (shifts.abs().amax(2) <= self.reach)
        fates = torch.where(goes, GOES, torch.where(after > 0, COMES, GONE))
        return Going(fates, shifts * goes[..., None], place)

    def sight(self, before: Places, picture: Tensor) -> Going:
        """What became of each mover, from its place in the last of K frames to the real next picture (B, 3, H, W)."""
        after = self.find(self.look(picture[:, None]))
        return self.follow(before.places[:, -1], after.places[:, 0], before.there[:, -1], after.there[:, 0])

    def likeliest(self, foresight: Foresight, places: Tensor, chance: Tensor | None = None) -> Going:
        """The fate of each mover at places (B, M, 2) that is likeliest once `chance` (B, 3M) is added to the logits,
        and the shifts and spots that are, of those that lead to where it is ever found, without gradients: mixed shifts
        blur a copy, and the copy of that copy more. With gradients passing straight through the movers unlearned what
        they knew."""
        fates = foresight.fates if chance is None else foresight.fates + chance.view(foresight.fates.shape)
        spots = [x.argmax(2) - (x.shape[2] - 1) / 2 for x in (foresight.rows, foresight.columns)]
        shifts = foresight.shifts - NEVER * ~self.appearance.within(places, self.shifts)
        return Going(fates.argmax(2), shifts.argmax(3).to(fates.dtype) - self.reach, torch.stack(spots, 2))

    def forward(self, found: Places, condition: Tensor, carry: Tensor) -> tuple[Foresight, Tensor]:
        """The places in K frames, the condition (B, C) and what was carried (B, carry_dim) -> what is foretold, what to
        carry on.

        A mover goes by whole pixels, and where it is thought to be is a fraction away. So what is carried is also how
        far it was thought to go, of which what it really went is taken off.
        """
        carry, trail = carry.tensor_split([CARRY], 1)
        trail, apart = self.trail(found, trail)
        course = torch.cat([self.course(found, trail, apart), self.meetings(found)], 1)
        hidden = self.think(self.enter(course) + self.condition(condition))
        carry = self.remember(torch.cat([hidden, condition], 1), carry)
        decided = self.decide(torch.cat([hidden, carry], 1))
        out = self.out(decided)
        motion, sharpness, free = out.unflatten(1, (self.count, 2, -1)).split([1, 1, 2 * self.reach + 1], dim=3)
        thought = self.reach * motion + apart[..., None]
        shifts = free - WIDE * torch.exp(sharpness) * (self.shifts - thought).square()
        carry = torch.cat([carry, thought.flatten(1), *(part.flatten(1) for part in trail)], 1)
        spots = self.count * (FATES + sum(self.frame_size))
        become, events = self.become(decided).tensor_split([spots], 1)
        fates, rows, columns = become.unflatten(1, (self.count, -1)).split([FATES, *self.frame_size], dim=2)
        nowhere = torch.cat([found.there[:, -1, :, None] - 1, torch.zeros_like(fates[..., 1:])], 2)  # cannot go
        return Foresight(fates + NEVER * nowhere, shifts, rows, columns, events), carry

    def trail(self, found: Places, kept: Tensor) -> tuple[list[Tensor], Tensor]:
        """What is kept of the movers (B, sum(FOLLOWED) M) brought up to date by their places in K frames: where each is
        or was last, (B, M, 2), its speed there (B, M, 2) and how many steps ago that was (B, M, 1); and how far it is
        from where it was thought to be, (B, M, 2)."""
        sizes = [self.count * size for size in FOLLOWED]
        thought, place, speed, age = (x.unflatten(1, (self.count, -1)) for x in kept.split(sizes, 1))
        (before, now), (there_before, there) = (x[:, -2:].unbind(1) for x in found)
        there, both = there[..., None], (there * there_before)[..., None]
        moved = (now - before) * both
        apart = (thought - moved).clamp(-APART, APART) * both
        place = torch.where(there > 0, now, place)
        speed = speed + AGEING * (moved - speed) * both
        return [place, speed, (age + 1) * (1 - there)], apart

    @staticmethod
    def course(found: Places, trail: list[Tensor], apart: Tensor) -> Tensor:
        """Of K frames and the `trail`: how movers went from frame to frame, which of them were there, where they are
        or were last, roughly and exactly, how fast and how long ago, as numbers about 1, (B, course_dim)."""
        places, there = found
        place, speed, age = trail
        steps = places.diff(dim=1) / 2 * (there[:, 1:] * there[:, :-1])[..., None]
        waves = [2 * math.pi / length * place for length in WAVELENGTHS]
        waits = [2 * math.pi / length * age for length in WAITS]
        turns = torch.cat([*waves, *waits], 2).flatten(1)
        rough = torch.cat([place / 16, speed / 2, apart], 2)
        return torch.cat([x.flatten(1) for x in (rough, *sine_and_cosine(turns), steps, there)], 1)

    def meetings(self, found: Places) -> Tensor:
        """How any two movers lie to each other in the last of K frames, the less the further apart they are: a ball
        leaves a paddle as it meets it. (B, pairs (3 + 4 TOUCHES))."""
        places, there = (x[:, -1] for x in found)
        one, other = self.pairs.unbind(1)
        away = places[:, other] - places[:, one]
        near = F.relu(1 - away.abs().amax(2, keepdim=True) / NEAR) * (there[:, one] * there[:, other])[..., None]
        turns = torch.cat([2 * math.pi / length * away for length in TOUCHES], 2)
        sine, cosine = sine_and_cosine(turns.flatten(1))
        waves = torch.cat([sine.view_as(turns), cosine.view_as(turns)], 2)
        return torch.cat([near, near * away / 4, near * waves], 2).flatten(1)

    def distance(self, place: Tensor, there: Tensor, going: Going) -> Tensor:
        """How far each pixel is from a mover's place (B, M, 2), if it is `there` (B, M), or from where it will be,
        whichever is nearer, in reaches, squared: (B, M, H, W)."""
        will_be, then = self.arrive(place, going)
        both = torch.stack([place, will_be])
        down, right = (x.square() for x in offsets(both, self.frame_size))
        away = torch.stack([1 - there, 1 - then])[..., None, None] * NEVER
        return (down[..., None] + right[..., None, :] + away).amin(0) / self.reach**2

    def coming(self, going: Going) -> Tensor:
        """Where something comes: 1 at the spot, 0 from two pixels on, (B, M, H, W)."""
        down, right = (x.abs() for x in offsets(going.spots, self.frame_size))
        far = torch.maximum(down[..., None], right[..., None, :])
        return F.relu(1 - far / 2) * (going.fates == COMES)[..., None, None]

    def move(self, pictures: Tensor, shifts: Tensor) -> Tensor:
        """Pictures (B, M, C, H, W), each as its mover goes, by whole pixels (B, M, 2). What comes in from outside is
        the edge."""
        down, right = (self.shifts == shifts[..., None]).to(pictures.dtype).unbind(2)
        moved = self._shift(down, pictures.shape[-2])[:, :, None] @ pictures
        return moved @ self._shift(right, pictures.shape[-1])[:, :, None].transpose(-1, -2)

    def _shift(self, shares: Tensor, size: int) -> Tensor:
        """Matrices (B, M, size, size) that move a line of pixels by the shares (B, M, 2R + 1)."""
        line = torch.arange(size, device=shares.device)
        source = (line[:, None] - self.shifts.long()).clamp(0, size - 1)
        chosen = F.one_hot(source.T, size).to(shares.dtype).flatten(1)  # (2R + 1, size * size)
        return (shares @ chosen).unflatten(2, (size, size))
