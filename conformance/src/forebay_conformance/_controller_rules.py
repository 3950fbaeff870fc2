"""The rules for a controller."""

from __future__ import annotations

from collections.abc import Mapping

CONTROLLER_RULES: Mapping[str, tuple[str, str]] = {
    "limits": (
        "Every answer is Limits: whole numbers of at least 1, a max_wait of 0 or more, max_bytes of at least 1 or None",
        "A controller that answers anything else is dismissed, and its stage stands still until its end.",
    ),
    "bounds": (
        "No answer leaves the bounds, whatever is observed, and however narrow they are",
        "The stage cuts it to the bounds, and the controller learns from limits that never held.",
    ),
    "never-raises": (
        "Nothing that can be observed makes it raise: no time, an hour, an empty queue, a huge batch, only failures",
        "A controller that raises is dismissed, and its stage stands still until its end.",
    ),
    "repeats": (
        "Two controllers that are made alike and see the same answer the same",
        "Nobody could find out from a record why it moved, and what a simulation shows would prove nothing.",
    ),
    "no-clock": (
        "Its methods read no clock and do no input or output; all that they know is what they are shown",
        "They run in the event loop after every call, where I/O holds up all stages; and a clock of its own is wrong "
        "in virtual time.",
    ),
    "reasons": (
        "Every move has a reason, in one line",
        "explain() and the event limits_changed would show that it moved, and not why.",
    ),
    "quiet": (
        "While nothing changes, at most one answer in 25 is a move that is no probe",
        "A stage that never rests hides the moves that mean something, and pays for those that mean nothing.",
    ),
    "probes-marked": (
        "While nothing changes, at most one answer in 500 takes a move back within two: what is tried for a call or "
        "two is a probe, and marked as one",
        "People would be told of moves that were never meant to stay.",
    ),
    "probes-rare": (
        "While nothing changes, at most two answers in five are probes",
        "Finding out would cost more than it can gain.",
    ),
    "adjust": (
        "adjust() returns limits within the new bounds, and every later answer is within them",
        "Whoever narrows the bounds of a running stage does so because something behind it is about to break.",
    ),
    "refused-smaller": (
        "After a batch was refused for its size the next ones are smaller",
        "Every batch would be refused, sent in halves, and refused again.",
    ),
    "refused-remembered": (
        "Where batches beyond some size are refused, at most one call in 20 is, and batches stay above a third of it",
        "Refused calls are work for nothing, and so is the fixed cost of batches that are far too small.",
    ),
    "refused-item": (
        "When a batch of one item is refused, batches do not get smaller",
        "It was the item: one after the other would bring the stage down to batches of one.",
    ),
    "failures": (
        "When every call fails, batch size times calls is halved, or more, within 60 calls",
        "A service that is overloaded would be kept that way by its own caller.",
    ),
    "collapse": (
        "When calls do not answer any more, batch size times calls is halved, or more, within 2 seconds and before "
        "one has come back",
        "A full set of large calls would be waiting for a service that is down, each until its time limit.",
    ),
    "straggler": (
        "One call that hangs while the others answer halves neither the batch size nor the calls",
        "One slow call in a thousand would keep the stage at a crawl.",
    ),
    "load": (
        "Under a system load of 0.9 batches of costly items shrink to two thirds or less in 10 seconds, and in 10 "
        "seconds after it they are back to three quarters or more",
        "A stage would keep this machine busy while others need it, or never recover from having been careful.",
    ),
    "goal": (
        "With a goal, 99 of 100 calls take no longer than its p99, and the stage gets at least a third done of what "
        "the best fixed limits do that keep calls within half of it",
        "A goal that is not kept, or kept by doing next to nothing, is none.",
    ),
    "converges": (
        "From limits that are far too small or far too large it comes to at least 0.7 of what the best fixed limits "
        "do, on each standard plant, and so it does from the best ones",
        "Users would have to find good numbers themselves, and a controller that leaves good ones does harm.",
    ),
    "reconverges": (
        "When the service changes, and when it changes back, it comes to at least 0.7 of what is the best then",
        "Good limits are wrong after the next release of what lies behind.",
    ),
}
"""Sentence and reason by name."""
