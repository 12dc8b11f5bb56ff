"""Geometry of two views that evaluation and reconstruction share: matches, poses, focal, terrain.

numpy and float64 unless a name says otherwise. Frames and conventions are those of `types.py`.
"""
