"""Names and keys for the actions of a game, as far as the game tells what they do."""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

PROCGEN = (
    "DOWNLEFT", "LEFT", "UPLEFT", "DOWN", "NOOP", "UP", "DOWNRIGHT", "RIGHT", "UPRIGHT",
    "FIRE", "SPECIAL_1", "SPECIAL_2", "SPECIAL_3", "SPECIAL_4", "SPECIAL_5",
)  # fmt: skip
NOOPS = ("NOOP", "NO_OP", "NONE", "NOTHING", "STAY", "STILL", "WAIT", "IDLE")
# A word of a name -> the key that means it; "" is a word that needs none.
_WORDS = {
    "UP": "w", "NORTH": "w", "FORWARD": "w", "DOWN": "s", "SOUTH": "s", "BACKWARD": "s", "BACK": "s",
    "LEFT": "a", "WEST": "a", "RIGHT": "d", "EAST": "d",
    "FIRE": "space", "SHOOT": "space", "JUMP": "space", "ATTACK": "space",
    "MOVE": "", "TURN": "", "GO": "", "STEP": "", "PUSH": "", "AND": "",
}  # fmt: skip
_SPLIT = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)))
_SPARE_KEYS = "123456789qerfzxcvtgbyhnujmikolp"


def meanings_of(env: Any, num_actions: int) -> tuple[str, ...] | None:
    """What a Gymnasium env says that its actions mean: by `get_action_meanings()`, as Atari's do, or by an enumeration
    `actions` or `Actions`, as MiniGrid's; None if it does not."""
    told: Sequence[str] = ()
    if callable(getattr(env, "get_action_meanings", None)):
        told = [str(name) for name in env.get_action_meanings()]
    for name in ("actions", "Actions"):
        members = getattr(env, name, None)
        if not told and isinstance(members, type) and issubclass(members, Enum):
            told = [member.name for member in members]
    return tuple(told) if len(told) == num_actions else None


def name_actions(told: Sequence[str] | None, num_actions: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Distinct names in capitals, and which of the game's actions each is; one that does nothing comes first."""
    names = [re.sub(r"\W+", "_", name.strip()).upper() or "ACTION" for name in told or ["ACTION"] * num_actions]
    names = [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    order = sorted(range(num_actions), key=lambda i: names[i] not in NOOPS)
    return tuple(names[i] for i in order), tuple(order)


def choose_keys(meanings: Sequence[str]) -> dict[str, list[str]]:
    """Keys to hold for each action: w, a, s, d and space where the name tells, else a key of its own while there are
    any; an action that does nothing needs none."""
    keys: dict[str, list[str]] = {}
    for name in meanings:
        held = _told_keys(name)
        if held and held not in keys.values():
            keys[name] = held
    taken = {key for held in keys.values() for key in held}
    spare = [key for key in _SPARE_KEYS if key not in taken]
    for name in meanings:
        if name not in keys and name not in NOOPS and spare:
            keys[name] = [spare.pop(0)]
    return {name: keys[name] for name in meanings if name in keys}


def _told_keys(name: str) -> list[str]:
    """`UPRIGHTFIRE` -> w, d, space; nothing if there is a word that we do not know."""
    rest = name.replace("_", "")
    words = _SPLIT.findall(rest)
    if "".join(words) != rest:
        return []
    return list(dict.fromkeys(_WORDS[word] for word in words if _WORDS[word]))
