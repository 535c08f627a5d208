"""The fault campaign: real processes under random faults, and a checker of their histories.

| module | contents |
|---|---|
| `history` | the log of a campaign |
| `story`, `passages`, `periods` | what follows from it: who waited, held, was disconnected, and when |
| `checker`, `endings`, `places`, `verdict` | the rules, and their violations |
| `worker`, `forks`, `recorder` | a process under test, how it is started, how it logs |
| `faults`, `clustered`, `scene` | the faults, those of a Redis Cluster, and what they act on |
| `conductor` | runs one campaign |
| `recovery` | measures the effect of each fault |
| `plants` | planted bugs, to check that they are found |

See `python -m tests.campaign --help`.
"""
