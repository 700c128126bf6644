"""Planted faults and true equivalents over several architectures: can the verdict fail, and does it only then?"""
