"""The backends: they store the order and the slots of each queue.

`protocol` is the interface: what a backend must do, and the events it emits. `memory` keeps a queue in
one process; `redis` shares it between many. No backend imports telemetry.
"""
