"""Scoring predicted views."""
