"""A seeded explorer of interleavings: the same seed is the same schedule, step by step.

A schedule is a sequence of steps. `choices` picks each step among all that could happen next in
production: the next callback of an event loop runs, a timer fires, a task is cancelled, a body ends, an
operator evicts. The invariants are checked after each step, so a violation is found at the step that
caused it, and `python -m tests.schedules --kind ... --seed N -v` replays the sequence. The Redis
backend is explored without an event loop, exhaustively: `tests/protocol`.

    choices   picks steps: by seed, or every path in turn
    loop      an event loop in virtual time that runs one callback at a time
    scenario  the calls, cancellations, limits and evictions of a schedule
    sinks     queues with and without the observing layer, and what the layer must have counted
    calls     the application's side of one call, and how it ended
    memory    `Queue` over the in-memory backend, compared with an exact model after each step
    planted   planted bugs, to show that the explorer finds them
    explore   runs many schedules, and reports on them

With the order "fifo", the callbacks of a loop run in the order in which they were scheduled, as asyncio
guarantees. Everything else is free. The order "any" drops even that guarantee, and runs any ready
callback.

Not explored: threads and signals. One callback is one step.
"""
