"""A seeded explorer of interleavings: the same seed is the same schedule, step by step.

Nothing runs by itself here. A schedule is a row of steps, each picked by `choices` among all that could
happen next in production: the next callback of an event loop runs, a timer fires, a task is cancelled,
a body ends, an operator evicts. After each step the invariants are checked, so a violation is found at
the step that made it, and `python -m tests.schedules --kind ... --seed N -v` shows that row of steps
again. The Redis backend is explored without an event loop, exhaustively: `tests/protocol`.

    choices   what is picked: by seed, or every path one after the other
    loop      an event loop in virtual time that does one thing at a time
    scenario  what is to happen at all: calls, cancellations, limits, evictions
    sinks     queues with and without the observing layer, and what that must have counted
    calls     the application's side of one call, and how it ended
    memory    `Queue` over the in-memory backend, compared with an exact model after each step
    planted   bugs, to show that the explorer finds such
    explore   many schedules in a row, and what was seen

What asyncio guarantees is kept where the library may rely on it: the callbacks of a loop run in the
order in which they were scheduled (order "fifo"). Everything else is free. The stricter order "any"
gives up even that, and runs any callback that is ready.

Out of reach: what one callback does by itself is one step, so threads and signals are not explored.
"""
