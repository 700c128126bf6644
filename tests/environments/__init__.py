"""Environments of other Pythons, torches and libraries than the pinned ones, and what is tried in each.

``make`` builds one, ``check`` runs inside it, ``table`` writes what they found into ``docs/versions.md``.
"""
