"""Tests of sgp_fast.data."""
