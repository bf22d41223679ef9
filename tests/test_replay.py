"""Batches that are learned from again."""

from typing import NamedTuple

import torch

from lwm_training.replay import Replay


class Inner(NamedTuple):
    places: torch.Tensor


class Seen(NamedTuple):
    inner: Inner
    valid: torch.Tensor


def batch(number: int, steps: int = 3) -> Seen:
    return Seen(Inner(torch.full((2, steps, 1), float(number))), torch.full((2, steps), number > 0))


def numbers(seen: Seen) -> list[int]:
    assert (seen.inner.places[..., 0] > 0).eq(seen.valid).all()  # what belongs together stays together
    return seen.inner.places[::2, 0, 0].int().tolist()


def test_a_batch_comes_first_and_then_others_of_its_shape_once_each():
    replay, generator = Replay(8), torch.Generator().manual_seed(0)

    mixed = [numbers(replay.mix(batch(k), generator, others=3)) for k in range(6)]
    other = replay.mix(batch(9, steps=4), generator)

    assert [seen[0] for seen in mixed] == list(range(6)) and numbers(other) == [9]
    assert [len(seen) for seen in mixed] == [1, 2, 3, 4, 4, 4]
    assert all(len(set(seen)) == len(seen) and max(seen) == seen[0] for seen in mixed)


def test_the_oldest_is_forgotten_and_nothing_new_is_kept_for_it():
    replay, generator = Replay(4), torch.Generator().manual_seed(0)
    for k in range(5):
        replay.mix(batch(k), generator)
    rings = [ring.data_ptr() for ring in replay._seen[(torch.Size([2, 3, 1]), torch.Size([2, 3]))][0]]

    again = numbers(replay.mix(batch(5), generator, others=9))

    assert again[0] == 5 and sorted(again[1:]) == [1, 2, 3, 4]
    assert [ring.data_ptr() for ring in replay._seen[(torch.Size([2, 3, 1]), torch.Size([2, 3]))][0]] == rings


def test_what_is_remembered_holds_no_gradients():
    replay, generator = Replay(4), torch.Generator().manual_seed(0)
    weight = torch.ones(1, requires_grad=True)
    replay.mix(Seen(Inner(batch(1).inner.places * weight), batch(1).valid), generator)

    mixed = replay.mix(Seen(Inner(batch(2).inner.places * weight), batch(2).valid), generator)
    mixed.inner.places.sum().backward()

    assert weight.grad.item() == 2 * 2 * 3  # of the new batch alone
