"""What the library costs, beside what it is built on and beside others: `python -m tests.benchmarks`.

`rounds` says how things are compared, `subjects` what is compared; the other modules measure, and list
their comparisons as sections. `targets` holds the bounds, `report` the output, `peers` the other
libraries, `fleet` the simulation of many instances.
"""
