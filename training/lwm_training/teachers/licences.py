"""Licences of teachers that one has to accept by name before they are run."""

from dataclasses import dataclass

from lwm_env.errors import ConfigMismatch


@dataclass(frozen=True)
class Licence:
    """A licence, and what of it matters here; its own text is what holds."""

    name: str
    title: str
    terms: tuple[str, ...]
    restricted: bool  # whether a world that learned from it must not become a default


GAMECRAFT = Licence(
    name="tencent-hunyuan-gamecraft",
    title="Tencent Hunyuan-GameCraft Community License Agreement",
    terms=(
        "It is not granted in the European Union, the United Kingdom and South Korea: neither the model nor its output "
        "may be used there.",
        "A model that is trained on its output, as a student here is, counts as a derivative: the licence and its "
        "acceptable use policy come with it, and whoever gets it must get them too.",
        "lwm-env notes it in every recording and in world.json, and never ships such a world or lists it as a default.",
        "This is how this project reads it and no legal advice. Read the LICENSE file of your checkout.",
    ),
    restricted=True,
)
LICENCES = {licence.name: licence for licence in (GAMECRAFT,)}


def terms(licence: Licence) -> str:
    """What is printed before anything is run."""
    lines = "\n".join(f"  - {term}" for term in licence.terms)
    return f"{licence.title}\n{lines}"


def check_accepted(licence: Licence, accepted: tuple[str, ...]) -> None:
    """ConfigMismatch unless it was accepted by its name."""
    if licence.name not in accepted:
        raise ConfigMismatch(
            f"This teacher is under the {licence.title}. Nothing was run. If you may and want to use it under these "
            f"terms, say so with --accept-license {licence.name}"
        )
