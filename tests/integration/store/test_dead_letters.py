"""The desk: what people do with dead letters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from broker_worker.dead_letter import letter_of_stranger
from broker_worker.message import Properties
from broker_worker.outcome import Failure, Reason
from broker_worker.store.dead_letters import Desk, KeptLetter, Selection
from tests.support.inbox import Inbox, a_failure, a_message, opened

ALL = Selection()


async def only_letter(desk: Desk) -> KeptLetter:
    [letter] = await desk.list_letters(ALL)
    return letter


async def a_stranger(inbox: Inbox, body: bytes = b"\xff") -> KeptLetter:
    properties = Properties(content_type="text/plain", headers={"colour": "blue"})
    failure = Failure("ContractError", "no task name")
    letter = letter_of_stranger(properties, body, queue="email", reason=Reason.MALFORMED, failure=failure)
    await inbox.tasks.bury(letter, is_published=True)
    return await only_letter(Desk(inbox.database))


async def test_a_letter_is_shown_with_its_body_and_its_error(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        await inbox.die(a_message(body=b'{"to": 1}', headers={"colour": "blue"}), a_failure("no such user"))

        detail = await desk.show((await only_letter(desk)).id)

        assert detail is not None
        assert detail.body == b'{"to": 1}'
        assert detail.properties["headers"] == {"colour": "blue"}
        assert (detail.letter.error_type, detail.letter.error_message) == ("ValueError", "no such user")


async def test_an_unknown_letter_is_not_shown(database_url: str) -> None:
    async with opened(database_url) as inbox:
        assert await Desk(inbox.database).show(uuid4()) is None


async def test_letters_are_listed_newest_first_in_pages_that_meet(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        for number in range(5):
            await inbox.die(a_message(f"t-{number}"))

        first = await desk.list_letters(ALL, limit=3)
        rest = await desk.list_letters(ALL, limit=3, before=(first[-1].failed_at, first[-1].id))

        assert [letter.message_id for letter in first + rest] == ["t-4", "t-3", "t-2", "t-1", "t-0"]


async def test_a_selection_fits_by_all_that_it_names(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        await inbox.die(a_message("t-1"), reason=Reason.TIMEOUT)
        await inbox.die(a_message("t-2"), reason=Reason.GAVE_UP)
        await inbox.die(a_message("t-3", queue="reports"), reason=Reason.GAVE_UP)

        found = await desk.list_letters(Selection(reason="gave_up", queue="email"))

        assert [letter.message_id for letter in found] == ["t-2"]


async def test_letters_of_one_kind_of_failure_are_one_group(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        await inbox.die(a_message("t-1"), a_failure("a"))
        await inbox.die(a_message("t-2"), a_failure("b"))
        await inbox.die(a_message("t-3"), a_failure(fingerprint=None))

        groups = await desk.groups(ALL)

        assert [(group.count, group.fingerprint) for group in groups] == [(2, "f00d"), (1, None)]
        assert groups[0].first_seen < groups[0].last_seen
        assert groups[0].example == (await desk.list_letters(Selection(group=groups[0].group)))[0].id


async def test_a_group_can_be_named_by_its_fingerprint(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        await inbox.die(a_message("t-1"))
        await inbox.die(a_message("t-2"), a_failure(fingerprint="beef"))

        found = await desk.list_letters(Selection(group="beef"))

        assert [letter.message_id for letter in found] == ["t-2"]


async def test_a_replayed_task_waits_again_with_all_its_attempts_and_a_new_epoch(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.die(a_message())
        desk = Desk(inbox.database)

        verdict = await desk.replay((await only_letter(desk)).id, actor="ada")

        assert verdict.is_done
        [row] = await inbox.fetch("SELECT state, attempt, epoch, reason, error_type FROM {schema}.tasks")
        assert (row["state"], row["attempt"], row["epoch"]) == ("queued", 0, claim.epoch + 1)


async def test_a_replay_is_left_to_any_relay_and_runs_the_same_message(database_url: str) -> None:
    async with opened(database_url) as inbox:
        message = a_message(body=b'{"a": 1}', correlation_id="c", headers={"colour": "blue"})
        await inbox.die(message)
        desk = Desk(inbox.database)
        await desk.replay((await only_letter(desk)).id, actor="ada")

        [owed] = await inbox.relay()

        assert owed.outgoing.body == b'{"a": 1}'
        assert owed.outgoing.routing_key == "email"
        assert owed.outgoing.properties.correlation_id == "c"
        assert owed.outgoing.properties.headers["colour"] == "blue"
        assert owed.outgoing.properties.headers["bw-task-id"] == "t-1"


async def test_a_replay_is_not_stopped_by_the_time_that_its_publisher_had_set(database_url: str) -> None:
    async with opened(database_url) as inbox:
        not_after = datetime.now(UTC) + timedelta(hours=1)
        await inbox.die(a_message(not_after=not_after))
        desk = Desk(inbox.database)
        await desk.replay((await only_letter(desk)).id, actor="ada")

        [owed] = await inbox.relay()

        assert "not-after" not in owed.outgoing.properties.headers


async def test_a_second_replay_of_a_letter_changes_nothing_and_says_when_the_first_was(
    database_url: str,
) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message())
        desk = Desk(inbox.database)
        letter = await only_letter(desk)
        await desk.replay(letter.id, actor="ada")

        again = await desk.replay(letter.id, actor="ada")

        assert not again.is_done
        assert again.detail.startswith("already replayed at 20")
        assert await inbox.count("outbox") == 1
        assert await inbox.count("audit") == 1


async def test_who_replayed_is_written_down(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.die(a_message())
        desk = Desk(inbox.database)
        letter = await only_letter(desk)
        await desk.replay(letter.id, actor="ada")

        [entry] = await inbox.fetch("SELECT actor, action, task_key, dead_letter FROM {schema}.audit")

        assert entry == {
            "actor": "ada",
            "action": "replay",
            "task_key": claim.key,
            "dead_letter": letter.id,
        }


async def test_a_task_that_died_again_is_replayed_from_its_newer_letter(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message())
        desk = Desk(inbox.database)
        old = await only_letter(desk)
        await desk.replay(old.id, actor="ada")
        [owed] = await inbox.relay()
        await inbox.confirm_everything()
        epoch = owed.outgoing.properties.headers["bw-epoch"]
        assert isinstance(epoch, int)
        await inbox.die(a_message(epoch=epoch))

        new = await only_letter(desk)
        verdict = await desk.replay(new.id, actor="ada")

        assert verdict.is_done
        assert new.id != old.id


async def test_an_open_letter_of_an_earlier_death_is_refused(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message())
        desk = Desk(inbox.database)
        await inbox.execute("UPDATE {schema}.dead_letters SET epoch = epoch - 1")

        verdict = await desk.replay((await only_letter(desk)).id, actor="ada")

        assert verdict.detail == "its task died again since then: replay that dead letter"
        assert await inbox.count("outbox") == 0


async def test_a_stranger_goes_back_to_its_queue_as_it_came(database_url: str) -> None:
    async with opened(database_url) as inbox:
        letter = await a_stranger(inbox, body=b"\xff\x00")

        verdict = await Desk(inbox.database).replay(letter.id, actor="ada")

        assert verdict.is_done
        [owed] = await inbox.relay()
        assert owed.outgoing.routing_key == "email"
        assert owed.outgoing.body == b"\xff\x00"
        assert owed.outgoing.properties.headers == {"colour": "blue"}


async def test_a_conflict_is_not_replayed_while_the_other_message_has_its_id(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(body=b"1"))
        await inbox.arrive(a_message(body=b"2"))
        await inbox.confirm_everything()
        desk = Desk(inbox.database)

        verdict = await desk.replay((await only_letter(desk)).id, actor="ada")

        assert not verdict.is_done
        assert "another message still has this id" in verdict.detail
        assert (await only_letter(desk)).resolution is None


async def test_a_conflict_is_replayed_once_the_other_task_is_gone(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.succeed(a_message(body=b"1"))
        await inbox.arrive(a_message(body=b"2"))
        await inbox.confirm_everything()
        await inbox.execute("DELETE FROM {schema}.tasks")
        desk = Desk(inbox.database)

        verdict = await desk.replay((await only_letter(desk)).id, actor="ada")

        assert verdict.is_done
        assert [owed.outgoing.body for owed in await inbox.relay()] == [b"2"]


async def test_a_task_whose_message_was_lost_cannot_be_replayed(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message(body=b"{}"))
        await inbox.execute(
            "UPDATE {schema}.dead_letters SET reason = 'lost', body = '', properties = '{{}}'"
        )
        desk = Desk(inbox.database)

        verdict = await desk.replay((await only_letter(desk)).id, actor="ada")

        assert "is not there any more" in verdict.detail
        [row] = await inbox.fetch("SELECT state FROM {schema}.tasks")
        assert row["state"] == "dead"


async def test_a_discarded_letter_stays_readable_and_leaves_the_list(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message(body=b'{"a": 1}'))
        desk = Desk(inbox.database)
        letter = await only_letter(desk)

        verdict = await desk.discard(letter.id, actor="ada")

        assert verdict.is_done
        assert await desk.list_letters(ALL) == []
        [resolved] = await desk.list_letters(ALL, with_resolved=True)
        assert resolved.resolution == "discarded"
        detail = await desk.show(letter.id)
        assert detail is not None
        assert detail.body == b'{"a": 1}'


async def test_a_discarded_letter_is_not_replayed(database_url: str) -> None:
    async with opened(database_url) as inbox:
        await inbox.die(a_message())
        desk = Desk(inbox.database)
        letter = await only_letter(desk)
        await desk.discard(letter.id, actor="ada")

        verdict = await desk.replay(letter.id, actor="ada")

        assert verdict.detail.startswith("already discarded at ")


async def test_a_letter_that_is_not_there_is_said_to_be_so(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)

        for answer in (desk.replay, desk.discard):
            assert (await answer(uuid4(), actor="ada")).detail == "no such dead letter"


async def test_a_selection_goes_oldest_first_and_leaves_out_what_comes_meanwhile(database_url: str) -> None:
    async with opened(database_url) as inbox:
        desk = Desk(inbox.database)
        for number in range(3):
            await inbox.die(a_message(f"t-{number}"))

        seen: list[str | None] = []
        async for id_ in desk.select(ALL):
            detail = await desk.show(id_)
            assert detail is not None
            seen.append(detail.letter.message_id)
            await inbox.die(a_message(f"new-{len(seen)}"))

        assert seen == ["t-0", "t-1", "t-2"]
        assert await desk.count(ALL) == 6
