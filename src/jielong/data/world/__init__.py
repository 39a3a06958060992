"""The embedded corpus generator: documents, conversations and questions of which every answer is known."""

from jielong.data.world.world import SKILLS, World

__all__ = ["SKILLS", "World"]
