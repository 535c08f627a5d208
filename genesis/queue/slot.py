"""`Slot`: what `async with queue.slot(...)` yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from genesis.backends.protocol import Grant, Ticket
from genesis.exceptions import SlotLostError


@dataclass(eq=False, repr=False, slots=True)
class Slot:
    """A slot of a queue, held until the `async with` block is left.

    Attributes:
        queue_id: the queue.
        item_id: the item.
        waited: seconds from entering to the grant; exactly 0.0 if the slot was free.
        fencing_token: strictly increasing with every grant of the queue. Pass it to the resource that
            the body changes; the resource must reject a smaller token than the largest it has seen
            (Kleppmann, "How to do distributed locking", 2016).
    """

    ticket: Ticket
    _grant: Grant
    # None after the block is left: a slot that was given back cannot be lost.
    _lapsed: Callable[[Ticket], bool] | None
    _lost: bool = False

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
        """Whether this holder has lost the slot. Once true, it stays true. Callable from any thread.

        True when the lease has run out by this process' clock (never later than by Redis's), when the
        holder was evicted, and when the Queue was closed.
        """
        lapsed = self._lapsed  # read once: another thread might ask while the block is being left
        if not self._lost and lapsed is not None and lapsed(self.ticket) and self._lapsed is not None:
            self._lost = True
        return self._lost

    def ensure_held(self) -> None:
        """Raise `SlotLostError` if the slot is lost. Call it before a step that must not run twice."""
        if self.lost:
            raise SlotLostError(self.queue_id, self.item_id, self.fencing_token)

    def mark_left(self) -> None:
        """Freeze `lost`, because the block is being left. Internal."""
        lapsed = self._lapsed
        try:
            if lapsed is not None and lapsed(self.ticket):
                self._lost = True
        finally:  # last: a handler of `SlotLost` might read the slot
            self._lapsed = None

    def __repr__(self) -> str:
        try:
            lost = ", lost" if self.lost else ""
        except Exception:
            lost = ""  # the backend raised; a repr must not
        return f"<Slot {self.fencing_token} of {self.queue_id!r} held by {self.item_id!r}{lost}>"
