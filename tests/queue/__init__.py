"""Tests of `Queue` beyond the contract."""
