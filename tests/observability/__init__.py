"""Tests of the observing layer: complete, truthful, and never in the way of a call."""
