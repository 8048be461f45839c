"""Every command of keyart by name: what it does, and the section of a recipe that it takes, if any."""

COMMANDS = {
    "demo": ("the whole pipeline on a simulated service, minutes on two CPU cores", "recipe"),
    "pipeline": ("the whole pipeline on a dataset: OUT/shards, run, bundle, scores, report", "recipe"),
    "simulate": ("a service with known truth: images, plays, impressions, true click probabilities", "simulate"),
    "import": ("CSV, JSON lines or Parquet files of any columns -> a dataset's tables", "import"),
    "check": ("the contract, with every violation counted and shown", None),
    "prepare": ("raw tables -> shards", "prepare"),
    "embed": ("embeddings of images, or vectors of your own, into the shards, cached by content", "embed"),
    "fit": ("shards -> a run folder; called again it resumes", "fit"),
    "value": ("a log and any model's scores -> the policy's value, by every estimator", None),
    "test": ("a randomised test of artworks -> which one wins, and whether that may be said yet", "test"),
    "plan": ("a first log -> how much to explore, for how many days, until the log can answer", "plan"),
    "evaluate": ("a run or a bundle on a dataset -> metrics, off-policy values, report.html", None),
    "export": ("a run -> a bundle: ONNX and what a serving team needs", None),
    "verify": ("every checksum of a bundle and every golden case", None),
    "refresh": ("new titles and artworks of a dataset into a bundle, without training", None),
    "score": ("a bundle over a dataset -> a table of click probabilities and policies", "engine"),
    "drift": ("a bundle and a newer log -> what has changed since the bundle's validation period", None),
    "recommend": ("a bundle over a dataset -> the titles every member should see first", None),
    "serve": ("a bundle behind HTTP: ranked artworks, propensities and explanations", None),
    "bench": ("a benchmark's table, or all of them: ours beside what a user would pick instead", None),
}
