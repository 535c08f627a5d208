"""A held slot, as the body of `async with` sees it."""

from __future__ import annotations

from collections.abc import Callable

from genesis.backends.protocol import Grant, Ticket
from genesis.exceptions import SlotLostError

__all__ = ["Slot"]


class Slot:
    """A slot of a queue, held until the `async with` block is left.

    Attributes:
        queue_id: the queue's.
        item_id: the item's.
        waited: seconds from entering to the grant; exactly 0.0 if the slot was free.
        fencing_token: grows strictly with every grant of the queue. Give it to whatever the body
            changes, and let that refuse a smaller one than it has seen (Kleppmann, "How to do
            distributed locking", 2016).
    """

    __slots__ = ("_grant", "_lapsed", "_lost", "ticket")

    def __init__(self, ticket: Ticket, grant: Grant, lapsed: Callable[[Ticket], bool]) -> None:
        self.ticket = ticket
        self._grant = grant
        # None once the block is left: a slot that was given back is not lost.
        self._lapsed: Callable[[Ticket], bool] | None = lapsed
        self._lost = False

    @property
    def queue_id(self) -> str:
        return self.ticket.queue_id

    @property
    def item_id(self) -> str:
        return self.ticket.item_id

    @property
    def waited(self) -> float:
        return self._grant.waited

    @property
    def fencing_token(self) -> int:
        return self._grant.fencing_token

    @property
    def lost(self) -> bool:
        """Whether the slot is not this holder's any more; once true, it stays true.

        True as soon as the lease has run out by this process' own reckoning, which is never later
        than Redis', or the holder was evicted, or the queue was closed.
        """
        lapsed = self._lapsed  # read once: a thread of the body's may ask while the block is left
        if not self._lost and lapsed is not None and lapsed(self.ticket):
            self._lost = True
        return self._lost

    def ensure_held(self) -> None:
        """Raise `SlotLostError` if the slot is lost; call it before what must not happen twice."""
        if self.lost:
            raise SlotLostError(self.queue_id, self.item_id, self.fencing_token)

    def mark_left(self) -> None:
        """For the queue: the block is being left; nothing is lost after that."""
        lapsed = self._lapsed
        try:
            if lapsed is not None and lapsed(self.ticket):
                self._lost = True
        finally:  # last: the handler of this event might read the slot
            self._lapsed = None

    def __repr__(self) -> str:
        try:
            lost = ", lost" if self.lost else ""
        except Exception:
            lost = ""  # a backend that cannot be asked; a repr raises nothing
        return f"<Slot {self.fencing_token} of {self.queue_id!r} held by {self.item_id!r}{lost}>"
