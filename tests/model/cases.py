"""The worlds that are explored, and the mutants that one of them has to kill."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.moves import Scope
from tests.model.rules import ALL_KEPT, Rules

SCOPES = (
    Scope("two workers", room=3),
    Scope("three workers", workers=3, room=1),
    Scope("room for two runs in a worker", slots=2, room=1),
    Scope("late acks", with_late_acks=True, room=2),
    Scope("late statements", with_late_statements=True, room=2),
    Scope("the handler's own transaction", is_transactional=True, with_late_statements=True, room=2),
    Scope("published twice", published=2, room=2),
    Scope("cancels and replays", with_cancel=True, with_replay=True, room=1),
    Scope("published twice, replays", published=2, with_replay=True, room=1),
    Scope("sent by a handler and published", with_sending=True, room=1),
    Scope("refusals, dates, a busy lane", with_circumstances=True, with_final_failures=True, room=1),
    Scope("the broker gives messages up", with_giving_up=True, room=1),
    Scope("the broker loses a message", losses=1, room=1),
)
SCOPE_BY_NAME = {scope.name: scope for scope in SCOPES}


@dataclass(frozen=True)
class Mutant:
    """One rule broken, the property that shows it, and the world in which it does."""

    name: str
    rules: Rules
    killed_by: str
    scope: Scope


def mutant(rule: str, killed_by: str, scope: str = "two workers") -> Mutant:
    return Mutant(rule, replace(ALL_KEPT, **{rule: False}), killed_by, SCOPE_BY_NAME[scope])


MUTANTS = (
    mutant("bumps_epoch_at_claim", "once"),
    mutant("only_current_copies_claim", "once"),
    mutant("charges_retries", "charge"),
    mutant("charges_takeovers", "charge"),
    mutant("takes_over_from_the_dead_only", "overlap"),
    mutant("gives_body", "ack"),
    mutant("settles_only_what_is_committed", "ack"),
    mutant("fences_by_state", "legal"),
    mutant("fences_by_claim", "one holder"),
    mutant("acks_after_record", "ack"),
    mutant("adopts", "charge", "room for two runs in a worker"),
    mutant("looks_after_unknown_commit", "ack", "the handler's own transaction"),
    mutant("carries_on_after_own_errors", "ack"),
    mutant("owes_with_state", "holder"),
    mutant("owes_when_released", "holder"),
    mutant("publishes_before_deleting", "holder"),
    mutant("drops_only_stale_copies", "holder"),
    mutant("keeps_body_while_waiting", "holder"),
    mutant("rescues_from_the_dead_only", "overlap"),
    mutant("releases_forgotten", "stuck"),
    mutant("doubts_its_memory", "ack"),
    mutant("reemits", "stuck", "the broker loses a message"),
    mutant("looks_for_messages_before_burying", "lost"),
    mutant("brings_back_what_the_broker_gave_up", "ack", "the broker gives messages up"),
    mutant("bounds_interruptions", "bounds"),
    mutant("honours_cancel_at_takeover", "cancel", "cancels and replays"),
    mutant("bumps_epoch_at_replay", "legal", "cancels and replays"),
)
