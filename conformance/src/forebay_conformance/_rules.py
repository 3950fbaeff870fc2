"""Every rule: a stable id, what it asks, and what breaks where a plugin does not keep it.

An id is never given a new meaning. A new rule raises the minor version and is listed in the changelog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from attrs import frozen

from forebay_conformance._controller_rules import CONTROLLER_RULES

RULES_VERSION = "0.2"
"""Version of the set of rules; it grows with each new rule."""


@frozen
class Rule:
    """One promise that a plugin must keep."""

    kind: str
    """What it applies to: `source`, `sink`, `dead-letter-store`, `state-store` or `controller`."""
    name: str
    """Name within the kind."""
    sentence: str
    """What is asked."""
    reason: str
    """What goes wrong in a program where the promise is broken."""
    since: str
    """Version of the rules that brought it."""

    @property
    def id(self) -> str:
        """The stable id: kind, colon, name."""
        return f"{self.kind}:{self.name}"

    @property
    def page(self) -> str:
        """Page of the documentation that explains the rule."""
        return f"docs/reference/conformance/{self.kind}.md#{self.name}"


_ENDS: Mapping[str, tuple[str, str]] = {
    "leave-cleanly": (
        "Leaving the block by an exception lets that very exception through, and closing twice is the same as once",
        "A program misses its own exception inside an ExceptionGroup, and a second close hides the first failure.",
    ),
    "leaves-nothing": (
        "After the block no task, thread or file of the plugin is left",
        "A service that opens and closes for weeks runs out of them.",
    ),
    "no-secrets": (
        "The exception for an engine that cannot be reached does not show the password",
        "Exceptions end up in logs and dead letters that many people read.",
    ),
}

_SOURCE: Mapping[str, tuple[str, str]] = {
    "chunk-shape": (
        "Offsets, and every other list of a chunk, are parallel to its items",
        "An item would be settled under the offset of another.",
    ),
    "order": (
        "Items of one partition come in the order of the source, each once",
        "Order per key rests on the order of the partition.",
    ),
    "offset-unique": (
        "No two items of a partition have the same offset",
        "Settling one would settle the other, which may not have been handled.",
    ),
    "offset-stable": (
        "An item that comes again has the partition and offset it had before",
        "Dead letters and counters are kept by offset; under a new one they start from nothing.",
    ),
    "max-items": (
        "A chunk never holds more than max_items items",
        "The pipeline's bound on items in hand would not hold.",
    ),
    "max-bytes": (
        "A chunk of several items stays within max_bytes",
        "The pipeline's bound on memory would not hold.",
    ),
    "oversize-alone": (
        "An item larger than max_bytes comes, and comes alone",
        "A source that holds it back stops for ever; one that adds others to it breaks the bound on memory.",
    ),
    "settle-only": (
        "exchange() with max_items=0 settles and hands out nothing",
        "A pipeline that drains would get items it can no longer handle.",
    ),
    "answers-promptly": (
        "exchange() answers with an empty chunk when nothing is ready; it does not wait for items",
        "Settlements travel with the next fetch: they would wait as long as the fetch does.",
    ),
    "end": (
        "exchange() returns None once every item is settled, and not while items wait to be handed out",
        "A run would never finish, or would finish with items left over.",
    ),
    "settle-after-end": (
        "After None a session still takes settlements",
        "The last batches are settled after the source has come to its end; they would be handled twice.",
    ),
    "settle-final": (
        "Settled items never come again, in this session or in a later one",
        "A clean end promises that nothing is handled twice.",
    ),
    "settle-out-of-order": (
        "Settling makes final the items it names, whatever the order, and no others",
        "Batches finish out of order: an item before or between would be lost or handled twice.",
    ),
    "settle-idempotent": (
        "Settling the same items twice is the same as once",
        "Settlements are sent again when it is not known whether they arrived.",
    ),
    "give-back": (
        "Items given back are handed out again at once",
        "After a cancelled run its items would wait for the claim to run out.",
    ),
    "give-back-idempotent": (
        "Giving back twice, or giving back what is settled, changes nothing",
        "A settled item would be handled again; an item would be in two hands.",
    ),
    "give-back-refund": (
        "With refund=True the delivery is not counted",
        "Items that only ever met restarts would be taken for items that crash the process.",
    ),
    "give-back-counted": (
        "With refund=False the delivery stays counted",
        "An item that keeps killing its batch would never be found out.",
    ),
    "unsettled-again": (
        "Items that were not settled come again after the session has ended",
        "This is at-least-once: without it a crash loses what was in hand.",
    ),
    "claim-ends": (
        "When a claim runs out, another member gets the items",
        "What a crashed or frozen process had in hand would never be handled.",
    ),
    "renew-extends": (
        "renew() keeps the items in hand from others for another claim_seconds",
        "Slow batches would be handled twice at the same time.",
    ),
    "deliveries-counted": (
        "deliveries is 1 the first time and counts each further hand-out",
        "An item that kills the process is known by this number alone.",
    ),
    "failures-kept": (
        "The failures and maybe_done of a retry come with the item when it is handed out again",
        "Retry(max_attempts) would never be reached.",
    ),
    "renew-keeps-failures": (
        "Failures written by renew() are there when the item is handed out again",
        "An item would start its attempts anew after each crash.",
    ),
    "retry-due": (
        "A retry is not handed out before its time, and is after it",
        "Back-off would not hold the load off what is failing, or the item would be lost.",
    ),
    "stale-epoch": (
        "A settlement under an old epoch changes nothing and is reported as lost",
        "A process that was frozen would settle what another one is still handling.",
    ),
    "members-apart": (
        "Two members never hold the same item at the same time",
        "Every item would be handled twice.",
    ),
    "wait-ready": (
        "wait_ready() returns when items are ready, also when they become so while it waits",
        "The pipeline would sleep beside items that wait.",
    ),
    "wait-ready-cancel": (
        "wait_ready() may be cancelled at any step and takes nothing",
        "Items would disappear whenever the pipeline has something better to do.",
    ),
    "cancel-safe": (
        "exchange() cut off at any step loses no item and no later settlement",
        "Every cancelled run would lose items.",
    ),
    "lag": (
        "lag() returns how many items wait to be handed out",
        "Progress and autoscaling would follow a wrong number.",
    ),
    "unknown-fields": (
        "Records with further fields are taken",
        "The plugin would break with the next minor version of forebay.",
    ),
    **_ENDS,
}

_SINK: Mapping[str, tuple[str, str]] = {
    "outcome-shape": (
        "write() returns None, or one outcome (Failed, Again, Dropped or None) for each item",
        "A wrong count fails the whole batch; another value means nothing to the stage.",
    ),
    "writes-all": (
        "Items whose outcome is None have been written, once each",
        "They are settled on the strength of that outcome.",
    ),
    "empty-batch": (
        "An empty batch is taken and writes nothing",
        "A stage whose items were all filtered would fail.",
    ),
    "outcome-order": (
        "The failed outcomes stand at the places of the failed items",
        "The wrong items would be retried and dead-lettered.",
    ),
    "partial-failure": (
        "A bad item does not keep the good ones beside it from being written",
        "One bad item would block all that come with it.",
    ),
    "cancel-safe": (
        "After a write that was cut off at any step the sink still writes",
        "One time-out would break the connection for the rest of the run.",
    ),
    "concurrent-writes": (
        "Several writes at the same time do not disturb each other",
        "The stage runs several batches at once.",
    ),
    "large-batch": (
        "A batch of large_batch items is written whole",
        "Adaptive batch sizes find the engine's limit on parameters; the sink has to split there.",
    ),
    "deadline": (
        "Every write ends within `patience` seconds, the hundredth like the first",
        "A pool that loses a connection with each write stops the run when it is empty.",
    ),
    **_ENDS,
}

_DEAD_LETTER_STORE: Mapping[str, tuple[str, str]] = {
    "put-idempotent": (
        "Putting an id a second time leaves the first record as it is",
        "A put whose answer was lost is sent again; its record would be doubled or overwritten.",
    ),
    "put-all-or-none": (
        "A put that is cut off at any step has stored all of its records or none",
        "Nobody would know which items are set aside and which are not.",
    ),
    "put-mixed": (
        "A put with known and unknown ids stores the unknown ones",
        "One repeated record would keep the others of its batch out: they would be lost.",
    ),
    "put-empty": ("Putting nothing is allowed and stores nothing", "A batch without failures would fail."),
    "put-concurrent": (
        "Records put by many tasks at once are all stored, each id once",
        "Batches fail at the same time when what lies behind them does.",
    ),
    "payload-exact": (
        "The payload comes back byte for byte",
        "A replay would send something else than what failed.",
    ),
    "headers-exact": (
        "Headers come back exactly, whatever their names and values",
        "Trace ids and routing would be lost in a replay.",
    ),
    "fields-exact": (
        "Every other field comes back as it was put",
        "Whoever looks into the failure would see another one.",
    ),
    "odd-text": (
        "A message with NUL or half a surrogate pair is stored; what the engine cannot hold is replaced",
        "Exceptions quote broken input. A store that refuses them keeps the worst items for ever in retry.",
    ),
    "find-order": (
        "find() returns records in the order of their ids",
        "Paging rests on one order that every store shares.",
    ),
    "find-pages": (
        "find() returns at most limit records, and with `after` the ones behind it, each once",
        "A replay of everything would skip records or run out of memory.",
    ),
    "find-filter": (
        "find() returns those records that the filter matches, field by field and together",
        "Somebody would replay or delete what was not meant.",
    ),
    "find-text": (
        "`text` is a plain substring of the message: no wildcards, upper and lower case differ",
        "Messages are full of % and _: a search for one would find everything.",
    ),
    "groups-count": (
        "groups() counts the records of each fingerprint, with first and last time and the newest one's description",
        "People decide by these numbers which failure to look at.",
    ),
    "groups-order": (
        "groups() returns the largest group first, equal ones by fingerprint",
        "The list would jump about under the reader's hands.",
    ),
    "groups-filter": ("groups() counts only the records that the filter matches", "A filtered view would not add up."),
    "move-state": (
        "move() changes the state of those ids that are in `old`, and returns these",
        "A replay would send again what is replayed already.",
    ),
    "move-race": (
        "Of several tasks that move the same ids each id goes to exactly one",
        "Two people who replay at the same time would send every item twice.",
    ),
    "purge-bounded": (
        "purge() deletes at most limit records and returns how many it deleted",
        "One purge of millions would block the database that the program runs on.",
    ),
    "purge-filter": (
        "purge() deletes only what the filter matches",
        "Dead letters that somebody still needs would be gone.",
    ),
    "many": (
        "A thousand records in one put are stored, paged through and purged",
        "That is what one wrong deployment leaves behind.",
    ),
    "cancel-safe": (
        "After any call that was cut off at any step the store still works",
        "One time-out would keep all later failures from being set aside.",
    ),
    "unknown-fields": (
        "Records with further fields are taken",
        "The plugin would break with the next minor version of forebay.",
    ),
    **_ENDS,
}

_STATE_STORE: Mapping[str, tuple[str, str]] = {
    "read-your-writes": (
        "get_many() returns what the last put_many() stored",
        "A stage would count from an old state.",
    ),
    "absent": (
        "get_many() returns None for a key that has no value",
        "An empty value and no value mean different things.",
    ),
    "get-order": (
        "get_many() returns one value for each key asked for, in that order, repeated keys included",
        "Values would be taken for those of other keys.",
    ),
    "put-all-or-none": (
        "A put_many() that is cut off at any step has stored all of its values or none",
        "State that belongs together would be torn.",
    ),
    "values-exact": (
        "Values come back byte for byte: empty ones, every byte, one mebibyte",
        "State would be damaged unseen.",
    ),
    "keys-exact": (
        "Keys are told apart exactly: case, spaces, wildcards and other scripts included",
        "Two keys would share one state.",
    ),
    "empty-calls": ("Calls without keys do nothing and do not fail", "A batch without state would fail."),
    "delete": (
        "delete_many() removes its keys, ignores those that do not exist, and touches no others",
        "State would come back, or a clean-up would fail half-way.",
    ),
    "cas-sets": (
        "cas() sets the key and returns True when it holds `old`",
        "Nothing that is guarded by it would ever proceed.",
    ),
    "cas-refuses": (
        "cas() returns False and changes nothing when the key holds something else",
        "An update of somebody else would be overwritten.",
    ),
    "cas-absent": (
        "cas() with old=None succeeds only for a key without a value; an empty value is a value",
        "Two members would each believe that they created it.",
    ),
    "cas-delete": (
        "cas() with new=None removes the key when it holds `old`",
        "A lock that is kept in it could never be released safely.",
    ),
    "cas-race": (
        "Of 50 tasks that cas() the same key from the same value exactly one succeeds",
        "Counters lose updates and locks have two owners.",
    ),
    "stale-put": (
        "put_many() under an epoch older than one that has written raises LostOwnershipError and writes nothing",
        "A process that was frozen would overwrite its successor's state.",
    ),
    "stale-delete": (
        "delete_many() under an old epoch raises LostOwnershipError and deletes nothing",
        "A process that was frozen would delete its successor's state.",
    ),
    "stale-cas": (
        "cas() under an old epoch raises LostOwnershipError and writes nothing",
        "A process that was frozen would take a lock away from its successor.",
    ),
    "epoch-again": (
        "The current epoch writes again and again, and a higher one takes over",
        "The rightful owner would be locked out of its own state.",
    ),
    "ttl": (
        "A value put with ttl is there before its time is over and gone after it, for get_many(), cas() and scan()",
        "State that should have been forgotten would decide.",
    ),
    "ttl-replaced": (
        "A put without ttl takes the old ttl away",
        "A value that was meant to stay would vanish.",
    ),
    "scan-order": (
        "scan() yields keys in ascending order, each once",
        "Readers merge scans and resume them by the last key.",
    ),
    "scan-prefix": (
        "scan() yields exactly the keys that start with the prefix: wildcards and case mean nothing special",
        "One tenant's prefix would show another one's keys.",
    ),
    "scan-complete": (
        "scan() yields every key, however many pages the engine needs",
        "What lies behind the first page would be forgotten.",
    ),
    "scan-bounded": (
        "scan() holds a page of keys in memory, not all of them",
        "A scan of millions of keys would end the process.",
    ),
    "scan-left-early": (
        "A scan that is left early leaves the store usable",
        "A cursor or connection that stays behind blocks the next call.",
    ),
    "concurrent": (
        "Many tasks that read and write at the same time each see their own writes",
        "Every partition of a program shares the store's connection.",
    ),
    "cancel-safe": (
        "After any call that was cut off at any step the store still works",
        "One time-out would break the state of the rest of the run.",
    ),
    **_ENDS,
}

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "source": "source",
        "sink": "sink",
        "dead-letter-store": "dead-letter store",
        "state-store": "state store",
        "controller": "controller",
    }
)
"""Each kind as it stands in ids, and in words."""


def _listed() -> dict[str, Rule]:
    tables = (
        ("source", _SOURCE, "0.1"),
        ("sink", _SINK, "0.1"),
        ("dead-letter-store", _DEAD_LETTER_STORE, "0.1"),
        ("state-store", _STATE_STORE, "0.1"),
        ("controller", CONTROLLER_RULES, "0.2"),
    )
    rules = [
        Rule(kind, name, sentence, reason, since)
        for kind, table, since in tables
        for name, (sentence, reason) in table.items()
    ]
    return {rule.id: rule for rule in rules}


RULES: Mapping[str, Rule] = MappingProxyType(_listed())
"""Every rule by its id, in the order of the documentation."""


def rules_of(kind: str, /) -> Sequence[Rule]:
    """Return the rules of one kind in the order of the documentation."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return [rule for rule in RULES.values() if rule.kind == kind]
