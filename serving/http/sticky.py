"""The same artwork for the same member and title throughout a period, also where the policy is random.

An exploring service that draws anew at every request shows a member a home page that flickers, and a log in which one member
saw all artworks of a title. A seed made of member, title and period keeps the draw: it changes only where the policy itself
changes. Over members the seeds are as good as random, so an artwork's propensity is what it was at the first impression of a
period; a member's further impressions of that title share its draw. Intervals must take members as their units, as `keyart value`
does; and a policy that reads which artwork the member clicked earlier in the period knows more of the draw than the propensity
says: value such a policy on the first impression of member, title and period.
"""

import math
from hashlib import blake2b

from serving.http.schema import MAX_SEED

_FULL = 2**64


def sticky_seed(member: str, title: str, timestamp: float, period: float) -> int:
    """A seed, 0 .. MAX_SEED - 1, of a member, a title and the period of some seconds that a time (seconds since 1970) lies in.

    Periods begin at another time for every member and title, so that not all change at once.
    """
    both = f"{len(member)}:{member}{title}".encode("utf-8", "surrogatepass")
    phase = int.from_bytes(blake2b(both, digest_size=8).digest()) / _FULL
    number = math.floor(timestamp / period + phase)
    return int.from_bytes(blake2b(b"%d:%s" % (number, both), digest_size=8).digest()) % MAX_SEED
