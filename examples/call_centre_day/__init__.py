"""The day that `examples/call_centre.py` plays, and how the run is checked.

An application needs none of this; `examples/call_centre.py` alone shows how to use the queue.

| module       | contents                                                                         |
|--------------|----------------------------------------------------------------------------------|
| `day`        | a day: its calls, and the number of agents on duty                               |
| `recorded`   | reads a day from a CSV file                                                      |
| `generated`  | draws a day at random                                                            |
| `figures`    | computes what an ideal line would do with a day, and the figures of a run        |
| `replay`     | plays a day: dispatches the calls, sets the limit, watches the line              |
| `worker`     | a worker process that handles calls, seen from both ends of its pipes            |
| `over_redis` | plays a day on several worker processes that share one line                      |
| `history`    | what was recorded of a run                                                       |
| `judge`      | checks a history: each call ended once, the limit held, nobody was overtaken     |
| `report`     | the first line and the summary                                                   |
| `options`    | the command line                                                                 |
"""
