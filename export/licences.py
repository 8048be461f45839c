"""Whose the weights in a bundle are, as far as its record tells."""

from typing import Any

from datamodules.artworks import FROM_FILE, FROM_HUB, FROM_RUN, TRAINED_HERE

TERMS = {
    TRAINED_HERE: "trained on the catalogue of {log}: yours, as far as its images and words are",
    FROM_HUB: "torchvision's: its code is BSD-3-Clause; the weights were trained on ImageNet and stand under the terms that "
    "follow from it, which torchvision does not grant: see https://github.com/pytorch/vision#pre-trained-model-license",
    FROM_FILE: "as the owner of the file of weights says that was given",
    FROM_RUN: "as the run says that the encoder was taken from",
}
UNKNOWN = "not recorded: the record names no image encoder"


def licences_of(record: dict[str, Any]) -> dict[str, str]:
    """By what it is of: a licence, or in whose hands it is; `record` as `bundle.json`."""
    log = f"log {record['log_fingerprint']}" if "log_fingerprint" in record else "a log that is not recorded"
    encoder = record.get("image_encoder")
    terms = UNKNOWN if encoder is None else f"{encoder}: {_terms(encoder).format(log=log)}"
    return {
        "ranker": f"weights and tables trained on {log}: yours, as far as that log and what it was trained from are",
        "image_encoder": terms,
        "code": "example.py, example.mjs and the graphs' operators are keyart's: Apache-2.0",
    }


def _terms(encoder: str) -> str:
    """By where an encoder's weights came from in the end: of a chain of runs, the last that is named."""
    found = [words for words in TERMS if words in encoder]
    assert found, f"{encoder}: tells no origin, as `train.embed` does"
    return TERMS[max(found, key=encoder.index)]
