"""Ids that are equal but for what other tools add or lose on the way: which id of another table is likely meant.

In: columns of ids as expressions or relations, of any table. Out: forms in which such ids are equal, and the likely id of each one
that is not listed.
"""

from typing import Any

import ibis

from datamodules.contract.engines import to_arrow

UUID_LENGTH = 36
AROUND = "\\s\\x00-\\x1f\"'{}\u00a0\u200b\ufeff"
"""White space, of Unicode too, control characters, quotes and braces: what may stand around an id."""
GROUPED = r"^[0-9]{1,3}([,_' ][0-9]{3})+$"
"""A number with a separator of thousands."""
EXPONENT = r"^[0-9](\.[0-9]+)?e[+]?(0?[0-9]|1[0-7])$"
"""A whole number of 64 bits as spreadsheets and floats write it."""
ACCENTED = "[a-z][\u0300-\u036f]+|[\u00c0-\u024f\u1e00-\u1eff]"
"""A Latin letter with a mark, as one character or as two: forms of one text, which are canonically equivalent (UAX 15)."""


def normal_form(value: Any) -> Any:
    """An id without what surrounds it, in lower case, without leading zeros, a trailing `.0` and the dashes of a UUID.

    Numbers are without an exponent and separators of thousands, and every letter with an accent is `?`, however it is written.
    """
    form = value.lower().re_replace(f"^[{AROUND}]+", "").re_replace(f"[{AROUND}]+$", "")
    form: Any = ibis.ifelse(form.length() == UUID_LENGTH, form.replace("-", ""), form)
    form: Any = ibis.ifelse(form.re_search(GROUPED), form.re_replace("[,_' ]", ""), form)
    whole: Any = form.try_cast("float64").try_cast("int64").cast("string")
    form: Any = ibis.ifelse(form.re_search(EXPONENT), whole, form)
    return form.re_replace(ACCENTED, "?").re_replace(r"\.0+$", "").re_replace("^0+", "")


def number_form(value: Any) -> Any:
    """The digits at the end of an id, without leading zeros and without what precedes them (`title-117` is `117`); else empty.

    Ids of different kinds may share it, so that it is a hint and no proof.
    """
    digits = normal_form(value).re_extract(r"^[^0-9]*0*([1-9][0-9]*)$", 1)
    return digits.fill_null("")


def likely_ids(unlisted: Any, listed: Any) -> dict[str, str]:
    """The id of `listed` that is likely meant by each of a few of `unlisted`, both relations with a column `id`.

    The same normal form decides; else the same number form, where one listed id alone has it.
    """
    forms = {"normal": normal_form, "number": number_form}
    few = unlisted.select("id", **{name: form(unlisted.id) for name, form in forms.items()})
    asked = to_arrow(few).to_pylist()
    likely: dict[str, str] = {}
    for name, form in forms.items():
        wanted = sorted({row[name] for row in asked if row[name] and row["id"] not in likely})
        if not wanted:
            continue
        others = listed.select("id", form=form(listed.id))
        same = others.filter(others.form.isin(wanted))
        counted = same.group_by("form").agg(first=same.id.min(), ids=same.id.nunique())
        by_form = {row["form"]: row for row in to_arrow(counted).to_pylist()}
        for row in asked:
            match = by_form.get(row[name])
            if match and row["id"] not in likely and (name == "normal" or match["ids"] == 1):
                likely[row["id"]] = match["first"]
    return likely
