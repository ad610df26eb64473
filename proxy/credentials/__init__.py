"""Whom to be known as to an upstream: where each account's credential comes from, and how it stays fresh."""
