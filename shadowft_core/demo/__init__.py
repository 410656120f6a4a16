"""Pairs to try the project with: a tiny embedded one, and a small real model with a synthetic Base."""
