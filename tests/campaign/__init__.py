"""The fault campaign: real processes under random faults, and a checker of what they lived through.

`history` is what was logged, `story` what follows from it (who waited, who held, who was out of
touch), `checker` the verdict. `worker` is a process under test, `forks` makes it, `faults` are the ways
to trouble it, `clustered` those of a Redis Cluster, `scene` is all that they can reach, `periods` are
stretches of time, `conductor` plays one campaign, `recovery` measures how long each fault is felt, and
`plants` are bugs put in on purpose, to see that they are found. `python -m tests.campaign --help`.
"""
