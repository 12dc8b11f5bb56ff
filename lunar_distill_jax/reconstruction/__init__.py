"""3D from two photographs of any size, with or without a known camera."""
