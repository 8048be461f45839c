"""Every way to break the images of a small dataset, and what `check` must say of it."""

from tests.dataset_edits import Break, cut, put


def named(image: str, *says: str, rule: str = "missing-image") -> Break:
    """The second artwork's image under another name, and what must be printed of it."""
    return Break(
        rule=rule,
        where="artworks.parquet",
        first=says,
        by=lambda d: put(d / "artworks.parquet", 1, image=image),
    )


IMAGE_BREAKS = (
    named("images/A1.PNG", "a1, images/A1.PNG (images/a1.png is there)"),
    named("images\\a1.png", "a1, images\\a1.png (images/a1.png is there)"),
    named("images/a1.jpeg", "a1, images/a1.jpeg (images/a1.png is there)"),
    named("posters/a1.png", "a1, posters/a1.png (images/a1.png is there)"),
    named("images/a1.png ", "a1, images/a1.png  (images/a1.png is there)"),
    named(
        "https://cdn.example.com/x/a1.png?w=300", "a1, https://cdn.example.com/x/a1.png?w=300 (images/a1.png is there)"
    ),
    named("data:image/png;base64," + 400 * "A", f"a1, data:image/png;base64,{55 * 'A'}..."),
    named(400 * "x" + ".png", f"a1, {77 * 'x'}..."),
    named("images/\x00", "a1, images/\\x00"),
    named("images", "a1, images"),
    named("C:\\art\\a1.png", "a1, C:\\art\\a1.png (images/a1.png is there)"),
    named("/art/a1.png", "a1, /art/a1.png (images/a1.png is there)", rule="image-outside"),
    Break(
        rule="null-image",
        where="artworks.parquet",
        first=("a1",),
        by=lambda d: put(d / "artworks.parquet", 1, image=" "),
    ),
    Break(
        rule="missing-image",
        where="artworks.parquet",
        first=("a1, images/a1.png",),
        by=lambda d: (d / "images/a1.png").unlink(),
    ),
    Break(
        rule="image-outside",
        where="artworks.parquet",
        first=("a1, images/../../a.png",),
        by=lambda d: put(d / "artworks.parquet", 1, image="images/../../a.png"),
    ),
    Break(
        rule="image-outside",
        where="artworks.parquet",
        by=lambda d: put(d / "artworks.parquet", 1, image=str(d / "images/a1.png")),
    ),
    Break(rule="unreadable-image", where="images/a1.png", says="first: a1, ", by=lambda d: cut(d / "images/a1.png")),
    Break(
        rule="unreadable-image",
        where="images/a1.png and 1 more file",
        count=2,
        by=lambda d: [(d / f"images/a{i}.png").write_text("<html>404</html>", encoding="utf-8") for i in (1, 3)],
    ),
)
