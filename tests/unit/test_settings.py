from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_worker.errors import ConfigurationError
from broker_worker.notation import Address, parse_duration, parse_size, show_duration, show_size
from broker_worker.settings import DeadLetters, LogLevel, Settings, example

SECRET = ("amqp_url", "database_url", "database_direct_url", "signing_keys")
EXAMPLE = Path(__file__).parents[2] / "config" / "worker.env.example"


def variables(**values: str) -> dict[str, str]:
    return {f"BROKER_WORKER_{name}": value for name, value in values.items()}


def problems(*needs: str, **values: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(variables(**values), needs=needs)
    return str(caught.value).splitlines()


def test_every_setting_has_a_default() -> None:
    settings = Settings.load({})

    assert settings.queues == {"default": 16}
    assert settings.retry_delay == timedelta(seconds=5)
    assert settings.dead_letter_retention is None
    assert settings.http_bind == Address("0.0.0.0", 8080)
    assert not settings.amqp_url.is_set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", timedelta(seconds=30)),
        ("250ms", timedelta(milliseconds=250)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
        ("1.5h", timedelta(minutes=90)),
    ],
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, value: timedelta) -> None:
    assert Settings.load(variables(TASK_TIMEOUT=text)).task_timeout == value


@pytest.mark.parametrize(
    ("text", "value"), [("1MiB", 2**20), ("64KiB", 2**16), ("1000000", 10**6), ("2mb", 2 * 10**6)]
)
def test_a_size_has_a_unit_or_is_in_bytes(text: str, value: int) -> None:
    assert Settings.load(variables(MAX_BODY_BYTES=text)).max_body_bytes == value


@given(st.integers(0, 10**10))
def test_a_shown_duration_reads_as_the_same(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)

    assert parse_duration(show_duration(value)) == value


@given(st.integers(0, 2**48))
def test_a_shown_size_reads_as_the_same(value: int) -> None:
    assert parse_size(show_size(value)) == value


def test_queues_name_their_concurrency_or_get_sixteen() -> None:
    assert Settings.load(variables(QUEUES="email:8, reports")).queues == {"email": 8, "reports": 16}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("[::1]:8080", Address("::1", 8080)),
        ("off", None),
        ("", None),
    ],
)
def test_http_bind_is_an_address_or_off(text: str, value: Address | None) -> None:
    assert Settings.load(variables(HTTP_BIND=text)).http_bind == value


def test_choices_ignore_case() -> None:
    settings = Settings.load(variables(LOG_LEVEL="WARNING", DEAD_LETTERS="Queue"))

    assert (settings.log_level, settings.dead_letters) == (LogLevel.WARNING, DeadLetters.QUEUE)


def test_space_around_a_value_is_ignored() -> None:
    assert Settings.load(variables(TASK_TIMEOUT=" 5m\n")).task_timeout == timedelta(minutes=5)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert Settings.load(variables(MAX_ATTEMPTS="", AMQP_URL=" ")).max_attempts == 12


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("QUEUES", "email:0"),
        ("QUEUES", "email:1001"),
        ("QUEUES", "e.mail:1"),
        ("QUEUES", "email:1,email:2"),
        ("QUEUES", ","),
        ("TASK_TIMEOUT", "0"),
        ("TASK_TIMEOUT", "5 minutes"),
        ("TASK_TIMEOUT", "-1s"),
        ("TASK_TIMEOUT", "٣s"),
        ("TASK_TIMEOUT", "999999999999d"),
        ("MAX_ATTEMPTS", "1001"),
        ("MAX_ATTEMPTS", "nan"),
        ("MAX_BODY_BYTES", "129MiB"),
        ("MAX_BODY_BYTES", "0"),
        ("DATABASE_POOL_SIZE", "0"),
        ("DECLARE", "maybe"),
        ("PREFIX", "b.w"),
        ("DATABASE_SCHEMA", "Broker Worker"),
        ("DATABASE_SCHEMA", "pg_temp"),
        ("HTTP_BIND", "::1:8080"),
        ("HTTP_BIND", "localhost"),
        ("HTTP_BIND", "localhost:65536"),
        ("HANDLERS", "app/handlers.py"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_variable_the_value_and_what_is_allowed(
    name: str, text: str
) -> None:
    lines = problems(**{name: text})

    assert len(lines) == 1
    assert lines[0].startswith(f"BROKER_WORKER_{name}={text!r}: allowed is ")


def test_every_problem_is_told_at_once() -> None:
    assert len(problems("handlers", DECLARE="maybe", PREFIX="b.w", AMQP_URL="http://x", QUEUE="x")) == 5


def test_an_unknown_variable_is_refused_with_a_guess_and_without_its_value() -> None:
    assert problems(AMQP_UR="amqp://user:secret@host") == [
        "BROKER_WORKER_AMQP_UR: no such setting; did you mean BROKER_WORKER_AMQP_URL?"
    ]


INJECTED = {  # by Kubernetes, for a Service with one port
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "80",
    "SERVICE_PORT_HTTP": "80",
    "PORT": "tcp://10.0.0.1:80",
    "PORT_80_TCP": "tcp://10.0.0.1:80",
    "PORT_80_TCP_PROTO": "tcp",
    "PORT_80_TCP_PORT": "80",
    "PORT_80_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("service", ["", "METRICS_"], ids=["broker-worker", "broker-worker-metrics"])
def test_what_kubernetes_injects_for_a_service_of_our_name_is_ignored(service: str) -> None:
    injected = {f"{service}{name}": value for name, value in INJECTED.items()}

    assert repr(Settings.load(variables(**injected))) == repr(Settings.load({}))


@pytest.mark.parametrize("name", ["LOCAL_RABBITMQ", "FAILPOINT"])
def test_variables_that_others_set_are_ignored(name: str) -> None:
    assert repr(Settings.load(variables(**{name: "x"}))) == repr(Settings.load({}))


@pytest.mark.parametrize("name", ["PORT", "HTTP_PORT"])
def test_a_port_that_a_person_has_set_is_no_setting(name: str) -> None:
    (line,) = problems(**{name: "8000"})

    assert line.startswith(f"BROKER_WORKER_{name}: no such setting")


def test_a_needed_setting_that_is_absent_is_named_with_its_alternatives() -> None:
    (line,) = problems("amqp_url")

    assert line.startswith("BROKER_WORKER_AMQP_URL or BROKER_WORKER_AMQP_URL_FILE: not set")


def test_a_password_in_the_wrong_variable_is_masked() -> None:
    (line,) = problems(HANDLERS="amqp://user:sec/r@t@host")

    assert "sec" not in line
    assert "//***@host" in line


def test_a_wrong_url_is_refused_without_its_text() -> None:
    (line,) = problems(DATABASE_URL="mysql://user:secret@host")

    assert (
        line == "BROKER_WORKER_DATABASE_URL: allowed is a URL that begins with postgres:// or postgresql://"
    )


def test_a_secret_shows_in_no_representation() -> None:
    settings = Settings.load(variables(AMQP_URL="amqp://user:secret@localhost"))

    assert "secret" not in f"{settings!r} {settings} {settings.amqp_url} {settings.model_dump()}"
    assert settings.amqp_url.reveal() == "amqp://user:secret@localhost"


def test_a_secret_from_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("amqp://localhost/old\n")
    settings = Settings.load(variables(AMQP_URL_FILE=str(path)))

    path.write_text("amqp://localhost/new\n")

    assert settings.amqp_url.reveal() == "amqp://localhost/new"


def test_a_secret_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (line,) = problems(AMQP_URL="amqp://secret", AMQP_URL_FILE=str(tmp_path / "url"))

    assert (
        line == "BROKER_WORKER_AMQP_URL and BROKER_WORKER_AMQP_URL_FILE are both set; allowed is one of them"
    )


@pytest.mark.parametrize("content", [None, b"", b"\xff"])
def test_a_secret_file_that_can_not_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content)

    (line,) = problems(AMQP_URL_FILE=str(path))

    assert line.startswith(f"BROKER_WORKER_AMQP_URL_FILE={str(path)!r}: ")


def test_an_absent_secret_says_so_when_it_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="BROKER_WORKER_AMQP_URL is not set"):
        Settings.load({}).amqp_url.reveal()


INSECURE_AMQP = [
    "amqps://host/?no_verify_ssl=1",
    "amqps://host/?heartbeat=5&no_verify_ssl=true",
    "amqps://host/?verify=verify_none",
    "amqps://localhost/?verify=verify_none",
    "amqps://host/?verify=verify_peer&no%5Fverify_ssl=1",
    "amqp://rabbitmq",
    "amqp://user:p%40ss@localhost.example.org/",
    "amqp://127.0.0.1,10.0.0.1",
    "amqp://[2001:db8::1]:5672/",
]
INSECURE_POSTGRES = [
    "postgres://db.example.org/app",
    "postgresql://user:p%40ss@db/app?sslmode=prefer",
    "postgresql://db/app?sslmode=disable",
    "postgresql://db/app?sslmode=allow",
    "postgresql://db/app?sslmode=require",
    "postgresql://db/app?sslmode=",
    "postgresql://db/app?sslmode=verify-full&sslmode=prefer",
    "postgresql://localhost,db/app",
    "postgresql://u:p@localhost:5432,10.0.0.1:5433/app",
    "postgresql:///app?host=db",
    "postgresql:///app?service=production",
]


@pytest.mark.parametrize(
    ("name", "url"),
    [("AMQP_URL", url) for url in INSECURE_AMQP] + [("DATABASE_URL", url) for url in INSECURE_POSTGRES],
)
def test_a_url_by_which_others_could_read_or_answer_is_one_line_unless_allowed(name: str, url: str) -> None:
    (line,) = problems(**{name: url})

    assert re.match(f"BROKER_WORKER_{name} (turns|leads)", line)
    assert line.endswith("; else allowed only with BROKER_WORKER_ALLOW_INSECURE=true")
    assert "host" not in line
    assert "db" not in line
    assert Settings.load(variables(**{name: url}, ALLOW_INSECURE="true")).allow_insecure


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("AMQP_URL", "amqps://host"),
        ("AMQP_URL", "amqps://host/?no_verify_ssl=0"),
        ("AMQP_URL", "amqps://host/?verify=verify_peer&cacertfile=/ca.pem"),
        ("AMQP_URL", "amqp://localhost:5672,127.0.0.2,[::1]:5673/"),
        ("DATABASE_URL", "postgresql://db/app?sslmode=verify-full"),
        ("DATABASE_URL", "postgresql://db/app?sslmode=verify-ca&sslrootcert=/ca.pem"),
        ("DATABASE_URL", "postgresql://db/app?sslmode=require&sslrootcert=/ca.pem"),
        ("DATABASE_URL", "postgresql://one,two/app?sslmode=verify-full&target_session_attrs=primary"),
        ("DATABASE_URL", "postgresql://localhost/app"),
        ("DATABASE_URL", "postgresql://u:p@127.0.0.1:5432/app?sslmode=disable"),
        ("DATABASE_URL", "postgresql://[::1]:5432/app"),
        ("DATABASE_URL", "postgresql:///app"),
        ("DATABASE_URL", "postgresql://[::1/what-is-no-url-is-for-the-connection-to-say"),
        ("DATABASE_URL", "postgresql:///app?host=/var/run/postgresql"),
        ("DATABASE_URL", "postgresql://%2Fvar%2Frun%2Fpostgresql/app"),
    ],
)
def test_a_url_that_verifies_or_stays_on_this_machine_is_accepted(name: str, url: str) -> None:
    settings = Settings.load(variables(**{name: url}))

    assert (settings.amqp_url if name == "AMQP_URL" else settings.database_url).reveal() == url


@pytest.mark.parametrize(
    ("environment", "is_accepted"),
    [
        ({"PGHOST": "db"}, False),
        ({"PGHOST": "db", "PGSSLMODE": "verify-full"}, True),
        ({"PGHOST": "db", "PGSSLMODE": "require", "PGSSLROOTCERT": "/ca.pem"}, True),
        ({"PGHOST": "/run/postgresql"}, True),
    ],
)
def test_the_variables_that_the_postgres_driver_heeds_are_judged_as_well(
    environment: dict[str, str], is_accepted: bool
) -> None:
    given = {**environment, **variables(DATABASE_URL="postgresql:///app")}

    if is_accepted:
        assert Settings.load(given).database_url.is_set
    else:
        with pytest.raises(ConfigurationError, match="BROKER_WORKER_DATABASE_URL leads to another machine"):
            Settings.load(given)


def test_a_file_whose_url_becomes_insecure_is_not_given_out_any_more(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("amqps://host")
    settings = Settings.load(variables(AMQP_URL_FILE=str(path)))

    path.write_text("amqp://user:s3cret@host")

    with pytest.raises(ConfigurationError, match="BROKER_WORKER_AMQP_URL leads to another machine") as caught:
        settings.amqp_url.reveal()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        "no-id-in-this-one",
        "id:short",
        "a:0123456789abcdef,a:fedcba9876543210",
        "a b:0123456789abcdef",
        "a:0123456789abcdef,",
    ],
)
def test_wrong_signing_keys_are_one_line_without_them(keys: str) -> None:
    (line,) = problems(SIGNING_KEYS=keys)

    assert line.startswith("BROKER_WORKER_SIGNING_KEYS: allowed is id:secret separated by commas")
    assert keys not in line


def test_signatures_can_not_be_required_without_a_key_to_verify_them_by() -> None:
    assert problems(REQUIRE_SIGNATURES="*") == [
        "BROKER_WORKER_REQUIRE_SIGNATURES needs BROKER_WORKER_SIGNING_KEYS to verify them by"
    ]
    assert Settings.load(
        variables(REQUIRE_SIGNATURES="pay*,email", SIGNING_KEYS="2026a:correct-horse-battery")
    ).require_signatures == ("pay*", "email")


def test_whoever_follows_a_secret_hears_of_each_new_one(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("amqp://localhost/old")
    settings = Settings.load(variables(AMQP_URL_FILE=str(path)))
    heard: list[str] = []

    settings.amqp_url.follow(heard.append)
    path.write_text("amqp://localhost/new")
    for _ in range(2):
        settings.amqp_url.reveal()

    assert heard == ["amqp://localhost/old", "amqp://localhost/new"]


def test_the_first_delay_may_not_be_longer_than_the_longest() -> None:
    assert problems(RETRY_DELAY="2h") == [
        "BROKER_WORKER_RETRY_DELAY is 2h, allowed is at most BROKER_WORKER_RETRY_MAX_DELAY, 1h"
    ]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load({}).prefix = "other"  # type: ignore[misc]


def test_nothing_but_the_given_variables_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_WORKER_PREFIX", "other")

    assert Settings.load({}).prefix == "bw"


def test_the_example_file_agrees_with_the_class() -> None:
    assert EXAMPLE.read_text() == example()


def test_the_example_file_can_be_used_as_it_is() -> None:
    lines = [line.lstrip("#") for line in EXAMPLE.read_text().splitlines() if "BROKER_WORKER_" in line]
    given = dict(line.split("=", 1) for line in lines if line.startswith("BROKER_WORKER_"))

    settings = Settings.load(given, needs=["amqp_url", "database_url", "handlers"])

    assert {name: v for name, v in settings if name not in SECRET and name != "handlers"} == {
        name: v for name, v in Settings.load({}) if name not in SECRET and name != "handlers"
    }


@pytest.mark.parametrize("patterns", ["'*'", '"pay"', "bw.q.pay", "k:0123456789abcdef", ","])
def test_what_can_be_the_name_of_no_queue_asks_for_no_signatures(patterns: str) -> None:
    (line,) = problems(REQUIRE_SIGNATURES=patterns, SIGNING_KEYS="2026a:correct-horse-battery")

    assert line.startswith("BROKER_WORKER_REQUIRE_SIGNATURES")
