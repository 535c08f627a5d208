"""The backends: where a queue's order and its slots are kept.

`protocol` is the seam: what a backend must do, and the facts it reports. `memory` keeps the line in
one process, `redis` shares it between many. Nothing here knows of telemetry.
"""
