"""Tests of canonize."""
