"""Tests of the pure package: no network, no files, no clock."""
