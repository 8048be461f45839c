"""What the ranker looks at: preferred artworks against rank_rows.onnx by brute force, and covered images with known effects."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from datamodules.shards.shard import MICROSECONDS, Shards
from evaluation.audits.examples import read_artwork_labels
from evaluation.record.records import read_report
from evaluation.report.preference_section import preference_section
from pipeline import judge
from serving.bundle.bundle import Bundle
from serving.bundle.new_artworks import ArtworkTower
from serving.scoring.mean_queries import MIN_MEMBERS, MeanQuery, mean_queries, sample_queries
from serving.scoring.occlusion import grid_of, occlude
from serving.scoring.preferences import MOST, NO_IMAGES, OCCLUDED, Preferences, preferences
from serving.scoring.scorer import shard_requests
from tests.given_vectors import without_images


@pytest.fixture(scope="module")
def record(bundle: Path, service: Path, shards: Path) -> Preferences:
    opened = Bundle.open(bundle)
    return preferences(opened, service, shards, opened.test_from)


def appeal_by_brute_force(
    bundle: Bundle, service: Path, shards: Path, title: str, artworks: list[str]
) -> tuple[np.ndarray, list[str]]:
    """By rank_rows.onnx and plain loops: for every evaluated impression's member, appeal of a title's artworks (N, K), and the
    member's favourite genre."""
    opened = Shards.open(shards)
    table = pq.read_table(service / "titles.parquet").to_pylist()
    genres_of = {row["title_id"]: row["genres"] or [] for row in table}
    names = opened.vocabularies["titles"].values
    artwork_rows = bundle.vocabularies["artworks"].rows(pa.array(artworks))
    appeals, favourites = [], []
    since = int(bundle.test_from.timestamp() * MICROSECONDS)
    for shard in opened.shards:
        rows = np.array([
            n for n in range(shard.impressions)
            if shard.shown_at[n] >= since and shard.candidate_start[n + 1] - shard.candidate_start[n] > 1
        ])  # fmt: skip
        for request, _ in shard_requests(shard, bundle.request_lengths, rows):
            count = len(request["title"])
            request["title"] = np.full(count, bundle.vocabularies["titles"].row(title))
            request["artworks"] = np.tile(artwork_rows.astype(np.int64), (count, 1))
            appeals.append(bundle.rank(request)["appeal"])
        for n in rows:
            plays = [names[row - 1] for row in shard.play_title[shard.history_start[n] : shard.history_end[n]]]
            counts = {
                g: sum(g in genres_of[play] for play in plays) for g in sorted({g for p in plays for g in genres_of[p]})
            }
            favourites.append(max(counts, key=lambda g: counts[g]) if counts else "")
    return np.concatenate(appeals), favourites


def test_preferred_artworks_are_those_of_the_ranking_graph(
    bundle: Path, service: Path, shards: Path, record: Preferences
) -> None:
    """Over all impressions, the mean of appeal by the graph, and for a genre's members its difference to that of all."""
    opened = Bundle.open(bundle)
    artworks = pq.read_table(service / "artworks.parquet").to_pylist()
    titles: dict[str, list[str]] = {}
    for row in artworks:
        titles.setdefault(row["title_id"], []).append(row["artwork_id"])
    assert record["impressions"] == record["impressions_in_period"] > 500
    assert record["artworks"] == len(artworks), "every artwork was a candidate on this service"
    appeals: dict[str, dict[str, float]] = {group["genre"]: {} for group in record["groups"]}
    assert len(appeals) > 2
    assert next(iter(appeals)) == ""
    for title, of_title in titles.items():
        appeal_NK, favourites = appeal_by_brute_force(opened, service, shards, title, of_title)
        assert len(appeal_NK) == record["impressions"]
        mean_K = appeal_NK.mean(0)
        appeals[""] |= dict(zip(of_title, mean_K.tolist(), strict=True))
        for genre in filter(None, appeals):
            above_K = appeal_NK[[favourite == genre for favourite in favourites]].mean(0) - mean_K
            appeals[genre] |= dict(zip(of_title, above_K.tolist(), strict=True))
    for group in record["groups"]:
        by_appeal = sorted(appeals[group["genre"]].items(), key=lambda pair: -pair[1])
        for listed, expected in ((group["most"], by_appeal[:MOST]), (group["least"], by_appeal[::-1][:MOST])):
            assert [row["artwork"] for row in listed] == [artwork for artwork, _ in expected]
            assert [row["appeal"] for row in listed] == pytest.approx([appeal for _, appeal in expected], abs=1e-5)
    assert record["groups"][0]["most"][0]["appeal"] > 0 > record["groups"][0]["least"][0]["appeal"]


def test_a_sample_is_evenly_spaced(bundle: Path, shards: Path) -> None:
    opened, opened_shards = Bundle.open(bundle), Shards.open(shards)
    genres_IG = np.ones((len(opened.vocabularies["titles"]), 1), bool)
    whole, sample = (
        sample_queries(opened, opened_shards.shards, opened.test_from, genres_IG, most) for most in (10**6, 100)
    )
    step = -(-whole.impressions // 100)
    assert len(whole.member_S) == whole.impressions == sample.impressions
    assert 80 < len(sample.member_S) <= 100
    np.testing.assert_array_equal(sample.member_S, whole.member_S[::step])
    np.testing.assert_allclose(sample.artwork_query_SD, whole.artwork_query_SD[::step], atol=1e-6)
    np.testing.assert_array_equal(sample.pair_P2, whole.pair_P2)
    everybody, genre = mean_queries(whole, ["any"])
    assert everybody.members > genre.members >= MIN_MEMBERS, "members without plays have no favourite genre"
    assert len(mean_queries(sample, ["any"])) == 1 + (
        len(np.unique(sample.member_S[sample.genre_S == 0])) >= MIN_MEMBERS
    )


@pytest.fixture(scope="module")
def red(bundle: Path) -> MeanQuery:
    """A query that meets the artwork vector of a red picture above that of a grey one."""
    session = ArtworkTower(Bundle.open(bundle)).session
    grey, red = (np.full((1, 48, 32, 3), colour, np.uint8) for colour in ((90, 90, 90), (250, 20, 20)))
    vectors = [
        np.asarray(session.run(["artwork_vector"], {"image": pixels, "depicts": np.array([[""]], object)})[0])[0]
        for pixels in (grey, red)
    ]
    width = Bundle.open(bundle).tables["artwork_content"].shape[1]
    return MeanQuery(
        genre="", impressions=1, members=1, bias=0.0, content_query_C=np.zeros(width),
        artwork_query_D=(vectors[1] - vectors[0]).astype(np.float64),
    )  # fmt: skip


def test_the_one_cell_with_content_counts_most(bundle: Path, red: MeanQuery) -> None:
    """Grey, but for one red cell: covering it changes appeal most, in the direction in which red does."""
    session = ArtworkTower(Bundle.open(bundle)).session
    pixels = np.full((96, 64, 3), 90, np.uint8)
    pixels[32:48, 16:32] = (250, 20, 20)
    cells_RL = occlude(session, pixels, None, red)
    assert cells_RL.shape == (6, 4)
    assert np.unravel_index(np.abs(cells_RL).argmax(), cells_RL.shape) == (2, 1)
    assert cells_RL[2, 1] > 0
    opposite = MeanQuery(**{**vars(red), "artwork_query_D": -red.artwork_query_D})
    np.testing.assert_allclose(occlude(session, pixels, None, opposite), -cells_RL, atol=1e-6)


def test_a_cell_is_the_difference_of_two_encodings(bundle: Path, red: MeanQuery, service: Path) -> None:
    """Any picture: a cell's figure is the appeal of the picture minus that of one covered by hand, in any size of batch."""
    from PIL import Image

    session = ArtworkTower(Bundle.open(bundle)).session
    pixels = np.asarray(Image.open(sorted((service / "images").rglob("*.*"))[0]).convert("RGB").resize((40, 60)))
    cells_RL = occlude(session, pixels, ["Drama"], red)
    covered = pixels.copy()
    covered[10:20, 30:40] = np.rint(pixels.mean((0, 1))).astype(np.uint8)
    appeals = []
    for image in (pixels, covered):
        encoded = session.run(["artwork_vector"], {"image": image[None], "depicts": np.array([["Drama"]], object)})
        appeals.append(float(np.asarray(encoded[0])[0] @ red.artwork_query_D))
    assert cells_RL[1, 3] == pytest.approx(appeals[0] - appeals[1], abs=1e-5)


def test_a_cell_without_effect_is_zero(bundle: Path, red: MeanQuery) -> None:
    """On a picture of one colour a cover changes nothing."""
    session = ArtworkTower(Bundle.open(bundle)).session
    cells_RL = occlude(session, np.full((60, 40, 3), (30, 120, 200), np.uint8), ["Drama"], red)
    np.testing.assert_allclose(cells_RL, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(150, 100, (6, 4)), (90, 160, (3, 7)), (100, 100, (5, 5)), (3, 2, (3, 2)), (1, 900, (1, 24)), (900, 1, (24, 1))],
)
def test_grids_follow_the_shape(height: int, width: int, grid: tuple[int, int]) -> None:
    assert grid_of(height, width) == grid


def test_the_page_shows_it(bundle: Path, service: Path, record: Preferences, tmp_path: Path) -> None:
    """A report by a bundle holds the record, by shards of the evaluated period alone, and its section."""
    report = judge(bundle, service, tmp_path / "report", Console(quiet=True))
    assert report == read_report(tmp_path / "report")
    expected = record
    assert "preferences" in report
    written = report["preferences"]
    assert written["impressions"] == expected["impressions"]
    for got, want in zip(written["groups"], expected["groups"], strict=True):
        for name in ("most", "least"):
            assert [row["artwork"] for row in got[name]] == [row["artwork"] for row in want[name]]
    assert len(written["occluded"]) == OCCLUDED
    assert len({row["artwork"]["title"] for row in written["occluded"]}) == OCCLUDED
    assert {row["shown_as"] for row in written["occluded"]} == {"most", "least"}
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    section = page[page.index("What the ranker looks at") :]
    section = section[: section.index("members, drawn at random")]
    listed = sum(len(group["most"]) + len(group["least"]) for group in written["groups"])
    assert section.count("<img ") == listed + OCCLUDED
    assert section.count("<rect ") == sum(len(row["cells"]) * len(row["cells"][0]) for row in written["occluded"])
    assert f"Members who had played {written['groups'][1]['genre']} most" in section
    assert written["groups"][0]["most"][0]["name"] in section


def section_of(record: Preferences, dataset: Path) -> str:
    return "".join(preference_section(record, read_artwork_labels(dataset)))


def test_images_that_cannot_be_read_are_skipped_and_counted(
    bundle: Path, service: Path, shards: Path, record: Preferences, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(service, tmp_path / "broken"))
    images = {row["artwork_id"]: row["image"] for row in pq.read_table(service / "artworks.parquet").to_pylist()}
    first, second = (row["artwork"]["artwork"] for row in record["occluded"][:2])
    (broken / images[first]).write_bytes(b"no image")
    (broken / images[second]).unlink()
    opened = Bundle.open(bundle)
    without = preferences(opened, broken, shards, opened.test_from)
    assert without["unreadable"] == 2
    assert without["occluded"] == record["occluded"][2:]
    assert without["groups"] == record["groups"]
    assert "cannot be read: 2." in section_of(without, broken)
    assert "cannot be read" not in section_of(record, service)


def test_a_dataset_without_images_says_so(bundle: Path, service: Path, shards: Path, tmp_path: Path) -> None:
    bare = without_images(Path(shutil.copytree(service, tmp_path / "bare")))
    opened = Bundle.open(bundle)
    record = preferences(opened, bare, shards, opened.test_from)
    assert (record["occluded"], record["unreadable"], record["left_out"]) == ([], 0, NO_IMAGES)
    assert NO_IMAGES in section_of(record, bare)
    assert record["groups"][0]["most"][0]["name"] in section_of(record, bare)
