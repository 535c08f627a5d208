"""Tests of the observing layer: complete, correct, and without effect on calls."""
