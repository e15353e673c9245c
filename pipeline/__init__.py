"""What is done: images, geometry, members, inference, posterior, outputs. Never imports Ray.

Begin with `geometry` (where tiles lie), then `inference` (a window and an ensemble become a posterior),
then `images` and `outputs` (how pixels come in and how results go out).
"""
