"""Tests of the backends beyond the contract: connections, scripts, costs, rights."""
