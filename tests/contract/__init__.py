"""The promises of a queue, over {memory, Redis} x {bare, observed, failing sinks} and both event loops.

The Cluster is one more backend, without a layer. `pytest_collection_modifyitems` in `tests/conftest.py`
leaves out the combinations that prove nothing new.
"""
