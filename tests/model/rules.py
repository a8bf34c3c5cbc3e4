"""The rules that carry the protocol, each of which a mutant breaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """All of them kept, unless said otherwise."""

    # a claim
    bumps_epoch_at_claim: bool = True
    only_current_copies_claim: bool = True
    charges_retries: bool = True
    charges_takeovers: bool = True
    takes_over_from_the_dead_only: bool = True
    gives_body: bool = True  # to a row that runs elsewhere, before its message is acked
    settles_only_what_is_committed: bool = True
    # a run
    fences_by_state: bool = True
    fences_by_claim: bool = True  # epoch and worker
    acks_after_record: bool = True
    adopts: bool = True  # a run whose channel is gone is known as one
    looks_after_unknown_commit: bool = True
    carries_on_after_own_errors: bool = True
    # what is owed
    owes_with_state: bool = True  # the copy is written in the commit of the state
    owes_when_released: bool = True
    publishes_before_deleting: bool = True
    drops_only_stale_copies: bool = True
    keeps_body_while_waiting: bool = True
    # what nobody holds
    rescues_from_the_dead_only: bool = True
    releases_forgotten: bool = True
    doubts_its_memory: bool = True  # which may not know a claim that was made
    reemits: bool = True
    looks_for_messages_before_burying: bool = True
    brings_back_what_the_broker_gave_up: bool = True
    bounds_interruptions: bool = True
    # people
    honours_cancel_at_takeover: bool = True
    bumps_epoch_at_replay: bool = True


ALL_KEPT = Rules()
