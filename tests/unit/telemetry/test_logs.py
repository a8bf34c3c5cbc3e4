import io
import json
import logging
import re
import warnings
from datetime import datetime, timedelta

import pydantic
import pytest
import structlog

from broker_worker.telemetry.logs import configure
from tests.unit.telemetry.conftest import Lines

CANARY = "c4n@ry/p#ss?w%rd:é"
log = logging.getLogger("app.handlers")


def fail(message: str) -> None:
    raise ValueError(message)


class Payload(pydantic.BaseModel):
    amount: int


def failed_validation() -> pydantic.ValidationError:
    value = "hunter" + "2"  # a traceback shows the source of this line
    with pytest.raises(pydantic.ValidationError) as caught:
        Payload.model_validate({"amount": value})
    return caught.value


def test_a_line_is_one_json_object_with_the_common_keys(lines: Lines) -> None:
    lines.configure()

    log.info("mail sent", extra={"task_id": "t-1", "size": 3})

    assert list(lines.only)[:3] == ["timestamp", "level", "message"]
    assert datetime.fromisoformat(lines.only["timestamp"]).utcoffset() == timedelta(0)
    assert lines.only | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "message": "mail sent",
        "logger": "app.handlers",
        "task_id": "t-1",
        "size": 3,
    }


@pytest.mark.parametrize("ending", ["\n", "\r", "\x1b[2J", "\0", "\u2028", "\u202e", "\ud800"])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_somebody_else_wrote_can_not_end_or_disguise_a_line(
    lines: Lines, ending: str, log_format: str
) -> None:
    lines.configure(log_format=log_format)

    log.warning("id %s", f"a{ending}b", extra={"task": f"c{ending}d", f"e{ending}f": [f"g{ending}h"]})

    assert lines.text.endswith("\n")
    assert lines.text[:-1].isprintable()


def test_a_terminal_gets_text_and_everything_else_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, begins in ((Terminal(), "\x1b"), (io.StringIO(), "{")):
        handlers = logging.getLogger().handlers
        logging.getLogger().handlers = []
        configure("info", log_format="auto", stream=stream)
        log.info("hello")
        logging.getLogger().handlers = handlers

        assert stream.getvalue().startswith(begins)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_a_traceback_is_a_field_in_json_and_indented_lines_on_a_console(lines: Lines) -> None:
    for log_format in ("json", "console"):
        lines.configure(log_format=log_format)
        try:
            fail("over\nlines")
        except ValueError:
            log.exception("it failed")

    first, *others = lines.raw
    assert json.loads(first)["error_type"] == "ValueError"
    assert "Traceback (most recent call last):" in json.loads(first)["exception"]
    assert "it failed" in others[0]
    assert all(line.startswith("    ") for line in others[1:])


def test_local_variables_are_never_shown(lines: Lines) -> None:
    for log_format in ("json", "console"):
        lines.configure(log_format=log_format)
        local = "local-" + "canary"
        try:
            fail(str(len(local)))
        except ValueError:
            log.exception("it failed")

    assert "local-canary" not in lines.text


def test_lines_of_a_handler_carry_the_fields_of_its_task(lines: Lines) -> None:
    lines.configure(task_fields=lambda: {"task_id": "t-7", "trace_id": "abc", "attempt": 2, "level": "x"})

    log.info("plain")
    log.info("own", extra={"attempt": 9})
    structlog.get_logger("app").info("structured", size=1)

    plain, own, structured = lines.all
    assert (plain["task_id"], plain["trace_id"], plain["attempt"], plain["level"]) == (
        "t-7",
        "abc",
        2,
        "info",
    )
    assert own["attempt"] == 9
    assert (structured["message"], structured["size"], structured["task_id"]) == ("structured", 1, "t-7")
    assert structured["logger"] == "app"


def test_a_field_of_an_application_can_not_replace_one_of_ours(lines: Lines) -> None:
    lines.configure()

    log.info("said", extra={"event": "e", "level": "l", "timestamp": "t", "logger": "g", "exception": 1})

    assert lines.only["message"] == "said"
    assert lines.only["level"] == "info"
    assert {"event_", "level_", "timestamp_", "logger_", "exception_"} <= lines.only.keys()


def test_nothing_below_the_level_is_written(lines: Lines) -> None:
    lines.configure("warning")

    log.info("no")
    structlog.get_logger("app").info("no")

    assert lines.text == ""


def test_libraries_stay_quiet_even_where_their_level_was_lowered(lines: Lines) -> None:
    lines.configure("debug")
    for name in ("aiormq.connection", "aio_pika.message", "asyncio", "sqlalchemy.engine", "alembic"):
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).debug("chatter")
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).setLevel(logging.NOTSET)

    assert lines.text == ""


@pytest.mark.parametrize("name", ["aiormq.connection", "aiormq", "aio_pika.channel", "pamqp"])
def test_the_amqp_libraries_show_neither_frames_nor_urls_nor_tracebacks(lines: Lines, name: str) -> None:
    class Frame:
        def __repr__(self) -> str:
            return f"<Body {CANARY}>"

    lines.configure("debug", log_format="json")
    library = logging.getLogger(name)

    library.debug("Connecting to: %s", f"amqp://user:{CANARY}@host")
    library.error("Unexpected frame %r after %d of %5.1f s", Frame(), 3, 2.0)
    library.error("error when creating transport: %r", OSError(CANARY))  # said once by us instead
    library.warning("Connection %r was blocked by: %r", Frame(), CANARY)  # and this
    library.warning("Got frame for closed channel %d: %r", 3, Frame())
    library.error("Consumer callback failed", exc_info=ValueError(CANARY))

    assert [line["message"] for line in lines.all] == [
        "Unexpected frame <Frame> after 3 of 2.0 s",
        "Got frame for closed channel 3: <Frame>",
        "Consumer callback failed",
    ]
    assert lines.all[2]["error_type"] == "ValueError"
    assert CANARY not in "".join(str(line) for line in lines.all)


def test_asyncio_reports_errors_without_the_texts_of_tasks(lines: Lines) -> None:
    lines.configure()
    message = "Task exception was never retrieved\nfuture: <Task exception=Error('canary')>"

    logging.getLogger("asyncio").error(message, exc_info=failed_validation())

    assert lines.only["message"] == "Task exception was never retrieved"
    assert "canary" not in lines.text
    assert "hunter2" not in lines.text


def test_an_input_value_of_a_failed_validation_is_not_shown(lines: Lines) -> None:
    lines.configure()
    error = failed_validation()

    log.warning("as an argument: %s", error)
    log.warning("as its repr: %r", error)
    log.warning("as a field", extra={"error": error})
    log.warning(f"as text: {error}")  # noqa: G004
    log.warning("as the exception", exc_info=error)

    assert len(lines.all) == 5
    assert "hunter2" not in lines.text
    assert "amount: int_parsing" in lines.all[0]["message"]


def test_bytes_are_not_shown(lines: Lines) -> None:
    lines.configure()

    log.warning("body %s", b"canary", extra={"body": b"canary", "bodies": [bytearray(b"canary")]})

    assert "canary" not in lines.text
    assert lines.only["body"] == "<6 bytes>"


def test_a_known_secret_is_masked_wherever_it_turns_up(lines: Lines) -> None:
    url = "postgresql://user:Tr0ub4dor%40%2F%23@db/app"
    for log_format in ("json", "console"):
        lines.configure(log_format=log_format, secrets=(url, 'plain "quoted" secret'))
        decoded = "Tr0ub4dor@/#"

        log.warning("as text %s and decoded %s", url, decoded, extra={"n": {"k": [decoded, (url,)], url: 1}})
        log.warning("repr %r", {"password": decoded, "other": 'plain "quoted" secret'})
        log.error("raised", exc_info=ValueError(f"could not reach {decoded}"))
        logging.getLogger("sqlalchemy.pool").error("cannot connect with %s", decoded)
        structlog.get_logger().warning("structured", where=url, value=decoded)

    assert "Tr0ub4dor" not in lines.text
    assert "quoted" not in lines.text


@pytest.mark.parametrize(
    "password", ["simple", "p@ss", "p/w", "p?w", "p#w", "p:w", "p%40w", "@@", "p'w", 'p"w', "é€"]
)
@pytest.mark.parametrize(
    "scheme", ["amqp", "amqps", "postgres", "postgresql", "postgresql+asyncpg", "AMQP", "http"]
)
def test_a_password_in_a_url_is_masked_also_where_nobody_said_that_it_is_one(
    lines: Lines, scheme: str, password: str
) -> None:
    lines.configure()
    url = f"{scheme}://bob:{password}@host:1/x"

    log.warning("cannot reach %s, will retry", url, extra={"url": url})

    assert lines.only["message"] == f"cannot reach {scheme}://***@host:1/x, will retry"
    assert lines.only["url"] == f"{scheme}://***@host:1/x"


def test_named_secrets_are_masked(lines: Lines) -> None:
    lines.configure()

    log.warning(
        "dsn host=db password='a \\'b' sslmode=x api_key=cc&token=dd",
        extra={"password": "ee", "headers": {"Authorization": "ff"}, "auth_token": "gg"},
    )

    assert lines.only["message"] == "dsn host=db password=*** sslmode=x api_key=***&token=***"
    assert (lines.only["password"], lines.only["auth_token"]) == ("***", "***")
    assert lines.only["headers"] == {"Authorization": "***"}


def test_what_postgres_says_of_a_row_is_not_shown(lines: Lines) -> None:
    lines.configure()

    log.warning("insert failed: duplicate key\nDETAIL:  Key (id)=(canary) already exists.\nHINT:  none")

    assert "canary" not in lines.text
    assert "HINT" in lines.text


def test_a_secret_learnt_later_is_masked_from_then_on(lines: Lines) -> None:
    lines.configure()
    lines.redactor.learn("rotated-secret")

    log.warning("now rotated-secret")

    assert lines.only["message"] == "now ***"


def test_a_secret_is_masked_also_in_a_line_that_was_written_before_it_was_learnt(lines: Lines) -> None:
    lines.configure()
    log.warning("now rotated-secret")
    lines.redactor.learn("rotated-secret")

    log.warning("now rotated-secret")

    assert [line["message"] for line in lines.all] == ["now rotated-secret", "now ***"]


def test_a_short_secret_is_masked_as_a_word_only(lines: Lines) -> None:
    lines.configure(secrets=("amqp://guest:guest@localhost",))

    log.warning("the guesthouse of guest")

    assert lines.only["message"] == "the guesthouse of ***"


def test_a_line_that_can_not_be_made_fails_nobody_and_shows_no_arguments(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("canary")

        __repr__ = __str__

    lines.configure()

    log.warning("%d items", "canary")
    log.warning("a field", extra={"value": Broken(), "nested": [Broken()]})

    assert lines.all[0]["message"] == "a log line could not be written"
    assert lines.all[0]["place"].startswith("test_logs.py:")
    assert lines.all[1]["message"] == "a field"
    assert "canary" not in lines.text
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_is_gone_fails_nobody(capsys: pytest.CaptureFixture[str], lines: Lines) -> None:
    lines.configure()
    lines.stream.close()

    log.warning("nobody reads this")

    assert capsys.readouterr() == ("", "")


def test_any_value_becomes_json(lines: Lines) -> None:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    lines.configure()

    log.warning(
        "values", extra={"cyclic": cyclic, "keys": {(1, 2): {3}}, "big": "x" * 10**6, "nan": float("nan")}
    )

    assert lines.only["keys"] == {"(1, 2)": [3]}
    assert len(lines.raw[0]) < 40_000


def test_a_warning_of_python_is_a_line(lines: Lines) -> None:
    lines.configure()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert lines.only["logger"] == "py.warnings"
    assert re.search("DeprecationWarning: old", lines.only["message"])


def test_a_hostile_text_costs_no_more_than_a_long_one(lines: Lines) -> None:
    lines.configure(secrets=("amqp://u:secretsecret@h",))

    for text in ("a.", "x://", "password", "a" * 50 + "=", "input_value=", "DETAIL:", "@"):
        log.warning("%s", text * 60_000)  # the timeout of this test is the assertion

    assert len(lines.raw) == 7
