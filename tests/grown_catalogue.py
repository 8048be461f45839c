"""A catalogue that gained titles and artworks: what tests of `keyart refresh` put into a bundle."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NEW_TITLES, NEW_ARTWORKS = ("aa new", "zz new"), ("aa face", "mm new of old", "zz couple")
"""Ids that sort before and behind the existing ones."""


def grow(service: Path, out: Path) -> None:
    """Write the service's catalogue, without its log, with two titles and three artworks more; two of the images odd ones."""
    out.mkdir()
    shutil.copytree(service / "images", out / "images")
    titles, artworks = (pq.read_table(service / f"{name}.parquet") for name in ("titles", "artworks"))
    like, shown = titles.to_pylist()[:2], artworks.to_pylist()
    more = [
        like[0] | {"title_id": NEW_TITLES[0]},
        like[1] | {"title_id": NEW_TITLES[1], "genres": [], "release_year": None},
    ]
    more[1]["cast"] = [*(like[0]["cast"] or []), "nobody has heard of her"]
    pictures = [Image.new("CMYK", (1, 1), (10, 200, 30, 0)), Image.open(service / shown[3]["image"]).resize((201, 333))]
    pictures[0].save(out / "images" / "dot.jpg")
    pictures[1].convert("LA").save(out / "images" / "grey.png")
    faces = [
        {
            "artwork_id": NEW_ARTWORKS[0],
            "title_id": NEW_TITLES[0],
            "image": "images/dot.jpg",
            "depicts": shown[0]["depicts"],
        },
        {"artwork_id": NEW_ARTWORKS[1], "title_id": like[1]["title_id"], "image": shown[5]["image"], "depicts": None},
        {
            "artwork_id": NEW_ARTWORKS[2],
            "title_id": NEW_TITLES[0],
            "image": "images/grey.png",
            "depicts": ["romance", "a dog"],
        },
    ]
    for name, table, rows in (("titles", titles, more), ("artworks", artworks, faces)):
        added = pa.Table.from_pylist(rows, table.schema)
        pq.write_table(pa.concat_tables([added.slice(0, 1), table, added.slice(1)]), out / f"{name}.parquet")
