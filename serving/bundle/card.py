"""The model card: what a bundle is, what was measured and what it must not be trusted with, written from its record."""

from collections.abc import Mapping

from datamodules.shards.embedding_origin import FROM_FILE, FROM_HUB, FROM_RUN, GIVEN, TRAINED_HERE, EmbeddingOrigin
from datamodules.shards.vocabulary import Vocabularies
from serving.bundle import contents, triton
from serving.bundle import verdict as judged
from serving.bundle.metadata import BundleRecord, Licences, RunOrigin
from serving.bundle.variants import precision_table

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


def model_card(metadata: BundleRecord, vocabularies: Vocabularies) -> str:
    """The card in Markdown, from what `bundle.json` holds. What was not measured is said to be not measured."""
    lines = ["# Model card", "", PURPOSE]
    lines += ["## Made of", "", *_made_of(metadata, vocabularies), ""]
    lines += ["## Measured", "", *_measured(metadata), ""]
    lines += ["## Precisions", "", PRECISIONS, *precision_table(metadata.get("precisions", [])), ""]
    lines += ["## Judged", "", *judged.section(metadata), ""]
    lines += ["## Graphs", "", *_graphs(metadata), "## Tables", "", *contents.section(metadata), ""]
    lines += [
        "## Triton",
        "",
        triton.TRITON_NOTES,
        "",
        "## Licences",
        "",
        *_licences(metadata),
        "",
        "## Limits",
        "",
        LIMITS,
    ]
    return "\n".join(lines)


def _made_of(metadata: BundleRecord, vocabularies: Vocabularies) -> list[str]:
    sizes = ", ".join(f"{len(v.values):,} {name}" for name, v in vocabularies.items() if name != "policies")
    provenance = metadata.get("provenance", {})
    rows = {
        "training": metadata.get("fingerprint"),
        "log": metadata.get("log_fingerprint"),
        "data from which on was kept for the test": metadata.get("test_from"),
        "catalogue": sizes,
        "image encoder": metadata.get("image_encoder"),
        "artworks are embedded from": _embedded_from(metadata.get("embedding")),
        "commit": provenance.get("commit"),
    }
    return _table({name: value for name, value in rows.items() if value is not None})


def _embedded_from(embedding: EmbeddingOrigin | None) -> str | None:
    """The sources of the embedding; None where they are not recorded, by an older keyart."""
    if embedding is None:
        return None
    words = {"image": "their images", "embedding": "vectors from outside, the column `embedding` of artworks.parquet"}
    sources = " and ".join(words[name] for name in embedding["sources"])
    if "vector_length" not in embedding or "vectors" not in embedding:
        return sources
    return (
        f"{sources} ({embedding['vector_length']} numbers, checksum {embedding['vectors']}). "
        "New artworks need vectors of the same model"
    )


def _measured(metadata: BundleRecord) -> list[str]:
    validation = metadata.get("metrics", {}).get("validation")
    rows: dict[str, str] = {}
    for head, words in (("click", "clicks"), ("engaged", "viewings given a click")):
        if isinstance(validation, Mapping) and f"{head}_log_loss_after" in validation:
            kind, loss = validation.get(f"{head}_calibration"), validation[f"{head}_log_loss_after"]
            rows[f"validation log loss of {words}, calibration"] = f"{loss:.5f}, {kind}"
    for words, measured in (
        ("largest difference from torch, 256 random requests over rows", metadata.get("parity")),
        ("largest difference from torch, golden cases over ids, in one go and in two", metadata.get("golden")),
        (
            "largest difference of a probability, new artworks and titles through artwork.onnx and title.onnx",
            metadata.get("vectors"),
        ),
        ("largest difference between appeal and the terms it is explained by", metadata.get("explanations")),
    ):
        if measured is not None:
            rows[words] = f"{measured['largest_difference']:.1e} (refused above {measured['bound']})"
    if not rows:
        return ["Nothing: this bundle was exported without a run's metrics."]
    for one in metadata.get("refreshed", []):
        rows[f"refreshed {one['at']}, without training"] = (
            f"{one['titles']:,} titles and {one['artworks']:,} artworks more"
        )
    return _table(rows)


def _licences(metadata: BundleRecord) -> list[str]:
    licences = metadata["licences"]
    return _table({name: licences[name] for name in ("ranker", "image_encoder", "code")})


def _graphs(metadata: BundleRecord) -> list[str]:
    lines = [
        f"ONNX opset {metadata['opset']}, ai.onnx.ml for ids, no custom operators; large weights in `weights.bin`.",
        "",
    ]
    for name, sides in metadata["graphs"].items():
        lines += [f"### {name}", "", "| | name | type | shape | meaning |", "|---|---|---|---|---|"]
        for word, rows in (("in", sides["inputs"]), ("out", sides["outputs"])):
            lines += [
                f"| {word} | {row['name']} | {row['dtype']} | {row['shape']} | {row['meaning']} |" for row in rows
            ]
        lines.append("")
    return lines


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


TERMS = {
    TRAINED_HERE: "trained on the catalogue of {log}: yours, as far as its images and words are",
    FROM_HUB: "torchvision's: its code is BSD-3-Clause; the weights were trained on ImageNet and stand under the terms that "
    "follow from it, which torchvision does not grant: see https://github.com/pytorch/vision#pre-trained-model-license",
    FROM_FILE: "as the owner of the file of weights says that was given",
    FROM_RUN: "as the run says that the encoder was taken from",
    GIVEN: "the vectors under the terms of the model that made them outside of keyart, which does not know it",
}


UNKNOWN = "not recorded: the record names no image encoder"


def licence_terms(origin: RunOrigin) -> Licences:
    """By what it is of: a licence, or in whose hands it is."""
    log = f"log {origin['log_fingerprint']}" if "log_fingerprint" in origin else "a log that is not recorded"
    encoder = origin.get("image_encoder")
    terms = UNKNOWN if encoder is None else f"{encoder}: {_terms(encoder).format(log=log)}"
    return {
        "ranker": f"weights and tables trained on {log}: yours, as far as that log and what it was trained from are",
        "image_encoder": terms,
        "code": "example.py, example.mjs and the graphs' operators are keyart's: Apache-2.0",
    }


def _terms(encoder: str) -> str:
    """By where an encoder's weights came from in the end: of a chain of runs, the last that is named; and vectors beside it."""
    found = [words for words in TERMS if words in encoder and words != GIVEN]
    origins = [max(found, key=encoder.index)] if found else []
    origins += [GIVEN] if GIVEN in encoder else []
    assert origins, f"{encoder}: tells no origin, as `train.embed` does"
    return "; ".join(TERMS[words] for words in origins)
