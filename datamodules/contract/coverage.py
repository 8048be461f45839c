"""How far the tables of a dataset know each other: plays before impressions, ids in two forms, plays that are there twice.

In: the sound tables as relations, ids as text. Out: `Coverage`, counted once for check, prepare and pipeline, and what of it is a
violation, a warning, or nothing to say. An honest log has members without plays and plays without impressions, so that only what
no honest log has is a warning: next to no history, no id in common, ids that are equal but for their form, plays there twice.
"""

from dataclasses import dataclass
from typing import Any

import ibis

from datamodules.contract.candidate_images import ImageCoverage
from datamodules.contract.check_files import Violation, printable
from datamodules.contract.engines import to_arrow
from datamodules.contract.id_forms import likely_ids, normal_form
from datamodules.contract.repeated_rows import RepeatedRows, measure_repeats, repeat_findings
from datamodules.contract.row_rule import Relations, typed_column
from datamodules.contract.tables import ARTWORKS, IMPRESSIONS, MEMBERS, PLAYS, Table

LOW_HISTORY = 0.05
"""Below this share of impressions with a play before them: a warning."""
TWO_FORMS = 0.01
"""From this share of rows whose id the other table has in another form: a warning."""


@dataclass(frozen=True, kw_only=True)
class SharedIds:
    """Whether the ids of one column occur in another."""

    left: str
    """As `plays.member_id`."""
    right: str
    rows: int
    """Rows of the left that have an id."""
    unknown: int
    """Those of them whose id the right does not have."""
    in_other_form: int
    """Those of them whose id the right has in another form: other case, leading zeros, a trailing `.0`, dashes of a UUID."""
    first: tuple[str, str] | None
    """The first id of either side: of those in two forms, else of all, where none is known; else None."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the tables know of each other."""

    impressions: int
    with_play_before: int
    """Impressions whose member has a play strictly before."""
    plays: int
    repeated: RepeatedRows
    images: ImageCoverage | None = None
    """How many candidates have an image; None where artworks cannot be judged."""
    shared: tuple[SharedIds, ...]

    def line(self) -> str:
        """The counts in one sentence."""
        members, titles = self.shared[:2]
        return (
            f"{_share(self.with_play_before, self.impressions)} of impressions have a play of their member before them; of plays, "
            f"{_share(members.unknown, members.rows)} are of members and {_share(titles.unknown, titles.rows)} of titles without "
            f"an impression, and {_share(self.repeated.plays, self.plays)} are repeated{self._images()}"
        )

    def _images(self) -> str:
        if self.images is None:
            return ""
        return (
            f"; {_share(self.images.without_image, self.images.artworks)} of artworks and "
            f"{_share(self.images.candidates_without, self.images.candidates)} of candidates have no "
            f"{'readable image' if self.images.opened else 'image'}"
        )


def measure_coverage(tables: Relations) -> Coverage | None:
    """Count it; None where plays or impressions cannot be judged, or there are none."""
    if PLAYS.name not in tables or IMPRESSIONS.name not in tables:
        return None
    plays, impressions = tables[PLAYS.name], tables[IMPRESSIONS.name]
    first_plays = plays.group_by("member_id").agg(first_play=typed_column(plays, "played_at").min())
    joined: Any = impressions.select("member_id", "shown_at").left_join(first_plays, "member_id")
    (of_impressions,) = to_arrow(
        joined.aggregate(rows=joined.count(), before=joined.count(where=(joined.first_play < joined.shown_at)))
    ).to_pylist()
    (of_plays,) = to_arrow(plays.aggregate(rows=plays.count())).to_pylist()
    if not of_plays["rows"] or not of_impressions["rows"]:
        return None
    pairs = [
        (PLAYS, "member_id", IMPRESSIONS, "member_id"),
        (PLAYS, "title_id", IMPRESSIONS, "title_id"),
        (PLAYS, "artwork_id", ARTWORKS, "artwork_id"),
        (IMPRESSIONS, "member_id", MEMBERS, "member_id"),
    ]
    shared = [_shared_ids(tables, *pair) for pair in pairs if pair[2].name in tables]
    return Coverage(
        impressions=of_impressions["rows"],
        with_play_before=of_impressions["before"],
        plays=of_plays["rows"],
        repeated=measure_repeats(plays, impressions, rows=of_plays["rows"], shown_rows=of_impressions["rows"]),
        shared=tuple(shared),
    )


def coverage_findings(coverage: Coverage, tables: Relations) -> tuple[list[Violation], list[Violation]]:
    """What of it breaks the contract, and what is a warning."""
    violations, warnings = [], []
    members = coverage.shared[0]
    before, impressions = coverage.with_play_before, coverage.impressions
    if before < LOW_HISTORY * impressions:
        (violations if before == 0 else warnings).append(_no_history(coverage, members))
    for pair in coverage.shared:
        if violations and pair is members:
            continue  # named above
        none_known = pair.rows and pair.unknown == pair.rows
        if none_known or pair.in_other_form > TWO_FORMS * pair.rows:
            warnings.append(_two_forms(pair))
    warnings += repeat_findings(
        coverage.repeated,
        tables[PLAYS.name],
        tables[IMPRESSIONS.name],
        rows=coverage.plays,
        shown_rows=coverage.impressions,
    )
    return violations, warnings


def _shared_ids(tables: Relations, left: Table, left_column: str, right: Table, right_column: str) -> SharedIds:
    def distinct(table: Table, column: str) -> Any:
        rows = tables[table.name].select(id=tables[table.name][column])
        known = rows.filter(rows.id.notnull())
        return known.group_by("id").agg(rows=known.count())

    ours, theirs = distinct(left, left_column), distinct(right, right_column)
    known: Any = ours.left_join(theirs.select("id", known=ibis.literal(True)), "id")
    unknown_rows = ibis.ifelse(known.known.isnull(), known.rows, 0)
    sums = known.aggregate(rows=_total(known.rows), unknown=_total(unknown_rows), first=known.id.min())
    (all_rows,) = to_arrow(sums).to_pylist()
    in_other_form, first = 0, None
    if all_rows["unknown"]:
        alone: Any = ours.anti_join(theirs, "id")
        others = theirs.select(other=theirs.id)
        forms = alone.mutate(form=normal_form(alone.id))
        other_forms = (
            others.mutate(form=normal_form(others.other)).group_by("form").agg(lambda t: t.other.min().name("other"))
        )
        joined: Any = forms.filter(forms.form != "").inner_join(other_forms, "form")
        (sums,) = to_arrow(joined.aggregate(rows=_total(joined.rows))).to_pylist()
        in_other_form = int(sums["rows"] or 0)
        if in_other_form:
            (pair,) = to_arrow(joined.order_by("id").limit(1).select("id", "other")).to_pylist()
            first = pair["id"], pair["other"]
        elif all_rows["unknown"] == all_rows["rows"]:
            likely = likely_ids(alone.order_by("id").limit(3), theirs)
            (other,) = to_arrow(theirs.aggregate(first=theirs.id.min())).to_pylist()
            first = next(iter(likely.items()), (all_rows["first"], other["first"]))
    return SharedIds(
        left=f"{left.name}.{left_column}",
        right=f"{right.name}.{right_column}",
        rows=int(all_rows["rows"] or 0),
        unknown=int(all_rows["unknown"] or 0),
        in_other_form=in_other_form,
        first=first,
    )


def _total(counts: Any) -> Any:
    return counts.cast("float64").sum()  # of integers, DuckDB makes 128 bits


def _no_history(coverage: Coverage, members: SharedIds) -> Violation:
    before, impressions = coverage.with_play_before, coverage.impressions
    what = f"{before:,} of {impressions:,} impressions have a play of their member before them"
    first: tuple[str, ...] = ()
    if members.unknown == members.rows:
        what += "; plays/ and impressions/ share no member_id"
        remedy = "Write both in one form, and export the plays of the members who were shown something"
    elif members.in_other_form:
        remedy = "Write member_id in one form in plays/ and impressions/"
    else:
        remedy = "Export the members' plays of the time before their impressions too"
    if members.first and (members.in_other_form or members.unknown == members.rows):
        first = (_beside(members.first, reverse=True),)
    return Violation(
        where="plays/ and impressions/",
        rule="no-play-before",
        what=what,
        count=impressions - before,
        first=first,
        remedy=remedy,
    )


def _two_forms(pair: SharedIds) -> Violation:
    if pair.in_other_form:
        what = f"{pair.in_other_form:,} of {pair.rows:,} rows have an id that {pair.right} has in another form"
    else:
        what = f"none of {pair.rows:,} rows has an id that {pair.right} has"
    assert pair.first is not None, "ids that are unknown have a first one"
    return Violation(
        where=pair.left,
        rule="ids-in-two-forms" if pair.in_other_form else "no-id-in-common",
        what=what,
        count=pair.in_other_form or pair.rows,
        first=(_beside(pair.first),),
        remedy="Write both in one form" if pair.in_other_form else "Export both from one source, with one kind of id",
    )


def _beside(pair: tuple[str, str], *, reverse: bool = False) -> str:
    one, other = (printable(value) for value in (reversed(pair) if reverse else pair))
    return f"{one} beside {other}"


def _share(part: int, whole: int) -> str:
    """A share in percent, which is 0 % and 100 % where it is that alone."""
    if not whole or part in (0, whole):
        return "0 %" if not part else "100 %"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f} %"
