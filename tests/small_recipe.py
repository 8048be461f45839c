"""A recipe with a small image encoder, for tests of whole benchmarks: four fifths of their time is the encoder's training."""

from pathlib import Path

RECIPE = """
embed: {views: 640, encoder: {height: 48, width: 32, stage_width: 8}}
fit: {epochs: 6}
"""


def small_recipe(folder: Path) -> str:
    """The file of the recipe, in the folder."""
    path = folder / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)
