"""The model card: a bundle's purpose, measurements and limits, written from its record."""

from collections.abc import Mapping

from datamodules.shards.embedding_origin import (
    DRAWN_HERE,
    FROM_FILE,
    FROM_HUB,
    FROM_PACKAGE,
    FROM_RUN,
    GIVEN,
    TRAINED_HERE,
    EmbeddingOrigin,
)
from datamodules.shards.vocabulary import Vocabularies
from serving.bundle import contents, triton
from serving.bundle import verdict as judged
from serving.bundle.metadata import OLDEST_ONNXRUNTIME, BundleRecord, Licences, RunOrigin
from serving.bundle.variants import precision_table

PURPOSE = """\
Chooses, for one member and one title, which of the title's artworks to show: the calibrated probability that the member
clicks, were this artwork shown, and that the click leads to a real viewing. It ranks titles for members too.
"""
PRECISIONS = """\
Reduced-precision graphs, in the folder of their name, have the inputs and outputs of rank.onnx, member.onnx and choose.onnx. A
precision ships where, on the run's own validation impressions, it keeps every bound given beside a figure. `snips lift`: clicks
per 1,000 impressions above the log's, showing the most probable artwork.
"""
LIMITS = """\
- A probability is what the log's period would have shown. Markets, catalogues and pages change: measure calibration on new
  impressions, compare them by `keyart drift`, and train again when they drift.
- The logging policy chose what was shown; kinds of artworks that it never showed are ranked by similarity to others only.
- Ids that training never saw share the unknown row: such titles and artworks are ranked by genres, people, year and image.
- The model knows members only by their plays and by the context of a request, such as device, country and time.
- `explore.onnx` and the policy thompson need another seed for every request. One seed for a whole day lets one draw choose for
  everybody: choices of different members then depend on each other, which no interval of an evaluation accounts for.
- It picks what is clicked. Whether exposure is fair is for people to judge: `keyart value` reports for which members the lift
  is, and which people are shown to whom.
"""


def model_card(metadata: BundleRecord, vocabularies: Vocabularies) -> str:
    """The card in Markdown, from the record in `bundle.json`; missing measurements are listed as not measured."""
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
        ("largest difference from torch, golden cases over ids, in one graph and in two", metadata.get("golden")),
        (
            "largest difference of a probability, new artworks and titles through artwork.onnx and title.onnx",
            metadata.get("vectors"),
        ),
        ("largest difference between appeal and the terms it is explained by", metadata.get("explanations")),
    ):
        if measured is not None:
            rows[words] = f"{measured['largest_difference']:.1e} (refused above {measured['bound']})"
    if "reference" in metadata:
        counted, of = metadata["reference"]["impressions"], metadata["reference"]["sampled_from"]
        rows["reference histograms for `keyart drift`"] = f"{counted:,} of {of:,} validation impressions"
    if not rows:
        return ["Nothing: this bundle was exported without a run's metrics."]
    for one in metadata.get("refreshed", []):
        rows[f"refreshed {one['at']}, without training"] = (
            f"{one['titles']:,} titles and {one['artworks']:,} artworks more, {one['withdrawn_titles']:,} and "
            f"{one['withdrawn_artworks']:,} withdrawn"
        )
    return _table(rows)


def _licences(metadata: BundleRecord) -> list[str]:
    licences = metadata["licences"]
    return _table({name: licences[name] for name in ("ranker", "image_encoder", "code")})


def _graphs(metadata: BundleRecord) -> list[str]:
    lines = [
        f"ONNX opset {metadata['opset']}, ai.onnx.ml for ids, no custom operators; large weights in `weights.bin`. "
        f"Runs in ONNX Runtime {OLDEST_ONNXRUNTIME} and newer.",
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
    DRAWN_HERE: "drawn at random and fitted to the catalogue of {log}: yours, as far as its images are",
    TRAINED_HERE: "trained on the catalogue of {log}: yours, as far as its images and words are",
    FROM_HUB: "torchvision's: its code is BSD-3-Clause; the weights were trained on ImageNet and stand under the terms that "
    "follow from it, which torchvision does not grant: see https://github.com/pytorch/vision#pre-trained-model-license",
    FROM_PACKAGE: "Google's, converted by ML Illustrated, whose package is Apache-2.0; they were trained on ImageNet and stand "
    "under the terms that follow from it, which the package does not grant",
    FROM_FILE: "as the owner of the file of weights says that was given",
    FROM_RUN: "as the run says that the encoder was taken from",
    GIVEN: "the vectors under the terms of the model that made them outside of keyart, which does not know it",
}


UNKNOWN = "not recorded: the record names no image encoder"


def licence_terms(origin: RunOrigin) -> Licences:
    """Licences or owners of the ranker, the image encoder and the code."""
    log = f"log {origin['log_fingerprint']}" if "log_fingerprint" in origin else "a log that is not recorded"
    encoder = origin.get("image_encoder")
    terms = UNKNOWN if encoder is None else f"{encoder}: {_terms(encoder).format(log=log)}"
    return {
        "ranker": f"weights and tables trained on {log}: yours, as far as that log and what it was trained from are",
        "image_encoder": terms,
        "code": "example.py, example.mjs and the graphs' operators are keyart's: Apache-2.0",
    }


def _terms(encoder: str) -> str:
    """Terms by the original source of an encoder's weights, the last one named in a chain of runs, and those of vectors."""
    sources = [words for words in TERMS if words in encoder and words != GIVEN]
    origins = [max(sources, key=encoder.index)] if sources else []
    origins += [GIVEN] if GIVEN in encoder else []
    assert origins, f"{encoder}: names no origin, as `train.embed` does"
    return "; ".join(TERMS[words] for words in origins)
