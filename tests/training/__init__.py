"""Tests of sgp_fast.training."""
