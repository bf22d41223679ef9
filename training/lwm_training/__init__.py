"""Makes worlds: collects real play, trains and evaluates a model, and writes a world folder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwm_training.real import make_real_vec

__all__ = ["make_real_vec"]


def __getattr__(name: str) -> Any:
    """`make_real_vec` is imported when it is asked for, so that the package stays light."""
    if name == "make_real_vec":
        from lwm_training.real import make_real_vec

        return make_real_vec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
