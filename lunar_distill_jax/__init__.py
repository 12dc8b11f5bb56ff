"""Distils MASt3R into small students that reconstruct the Moon in 3D from two photographs."""
