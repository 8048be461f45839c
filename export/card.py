"""The model card: what a bundle is, what was measured and what it must not be trusted with, written from its record."""

from typing import Any

from datamodules.vocabulary import Vocabularies
from export import contents, judged, triton
from export.variants import precisions_in_words

PURPOSE = """\
Chooses, for one member and one title, which of the title's artworks to show: the calibrated probability that the member
clicks, were this artwork shown, and that the click leads to a real viewing. It ranks titles for members too.
"""
PRECISIONS = """\
Graphs of fewer bytes answer as rank.onnx, member.onnx and choose.onnx do, from the folder of their name. One ships where, on the
run's own validation impressions, it keeps every bound given beside a figure. `snips lift`: clicks per 1,000 impressions above
the log's, showing the likeliest artwork.
"""
LIMITS = """\
- A probability is what the log's period would have shown. Markets, catalogues and pages change: measure calibration on new
  impressions, and train again when it drifts.
- Who was shown what is what the logging policy chose; kinds of artworks that it never showed are told by likeness alone.
- Ids that training never saw meet the unknown row: titles and artworks are then told by genres, people, year and image.
- Nothing here knows who a member is but by what was played, on which device, in which country and when.
- It picks what is clicked. What is fair to show to whom, and whom artworks depict, is for people to judge: `keyart value` tells
  for whom the lift is, and who is shown whom.
"""


def card_of(record: dict[str, Any], vocabularies: Vocabularies) -> str:
    """The card in Markdown, from what `bundle.json` holds. What was not measured is said to be not measured."""
    lines = ["# Model card", "", PURPOSE]
    lines += ["## Made of", "", *_made_of(record, vocabularies), ""]
    lines += ["## Measured", "", *_measured(record), ""]
    lines += ["## Precisions", "", PRECISIONS, *precisions_in_words(record.get("precisions", [])), ""]
    lines += ["## Judged", "", *judged.section(record), ""]
    lines += ["## Graphs", "", *_graphs(record), "## Tables", "", *contents.section(record), ""]
    lines += ["## Triton", "", triton.HOW, "", "## Licences", "", *_licences(record), "", "## Limits", "", LIMITS]
    return "\n".join(lines)


def _made_of(record: dict[str, Any], vocabularies: Vocabularies) -> list[str]:
    sizes = ", ".join(f"{len(v.values):,} {name}" for name, v in vocabularies.items() if name != "policies")
    provenance = record.get("provenance") or {}
    rows = {
        "training": record.get("fingerprint"),
        "log": record.get("log_fingerprint"),
        "data from which on was kept for the test": record.get("test_from"),
        "catalogue": sizes,
        "image encoder": record.get("image_encoder"),
        "commit": provenance.get("commit"),
    }
    return _table({name: value for name, value in rows.items() if value is not None})


def _measured(record: dict[str, Any]) -> list[str]:
    metrics = record.get("metrics") or {}
    validation = metrics.get("validation") or {}
    rows: dict[str, Any] = {}
    for head, words in (("click", "clicks"), ("engaged", "viewings given a click")):
        if f"{head}_log_loss_after" in validation:
            kind, loss = validation.get(f"{head}_calibration"), validation[f"{head}_log_loss_after"]
            rows[f"validation log loss of {words}, calibration"] = f"{loss:.5f}, {kind}"
    for name, words in (
        ("parity", "largest difference from torch, 256 random requests over rows"),
        ("golden", "largest difference from torch, golden cases over ids, in one go and in two"),
        ("vectors", "largest difference of a probability, images and words through artwork.onnx and title.onnx"),
        ("explanations", "largest difference between appeal and the terms it is explained by"),
    ):
        if name in record:
            rows[words] = f"{record[name]['largest_difference']:.1e} (refused above {record[name]['bound']})"
    if not rows:
        return ["Nothing: this bundle was exported without a run's metrics."]
    for one in record.get("refreshed", []):
        rows[f"refreshed {one['at']}, without training"] = (
            f"{one['titles']:,} titles and {one['artworks']:,} artworks more"
        )
    return _table(rows)


def _licences(record: dict[str, Any]) -> list[str]:
    return _table(record.get("licences") or {"all": "not recorded: an older keyart exported this bundle"})


def _graphs(record: dict[str, Any]) -> list[str]:
    lines = [
        f"ONNX opset {record['opset']}, ai.onnx.ml for ids, no custom operators; large weights in `weights.bin`.",
        "",
    ]
    for name, sides in record["graphs"].items():
        lines += [f"### {name}", "", "| | name | type | shape | meaning |", "|---|---|---|---|---|"]
        for side, word in (("inputs", "in"), ("outputs", "out")):
            rows = sides[side]
            lines += [
                f"| {word} | {row['name']} | {row['dtype']} | {row['shape']} | {row['meaning']} |" for row in rows
            ]
        lines.append("")
    return lines


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
