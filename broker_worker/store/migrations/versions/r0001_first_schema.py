"""The first schema: tasks and what hangs on them, outbox, dead letters, workers, audit.

`tasks` is narrow and its success path touches no indexed column, so that an
update stays in its page (heap-only): the partial indexes stand on columns that
only waiting and failing rows set.
"""

from __future__ import annotations

from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = """
CREATE TABLE {schema}.tasks (
  key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  queue text NOT NULL,
  name text NOT NULL,
  message_id text NOT NULL,
  digest bytea NOT NULL,
  state text NOT NULL CHECK (state IN
    ('queued', 'running', 'retrying', 'succeeded', 'dead', 'cancelled', 'expired')),
  attempt smallint NOT NULL DEFAULT 0 CHECK (attempt >= 0),
  max_attempts smallint NOT NULL,
  epoch integer NOT NULL DEFAULT 0,
  worker uuid,
  interruptions smallint NOT NULL DEFAULT 0,
  poisonings smallint NOT NULL DEFAULT 0,
  reemissions smallint NOT NULL DEFAULT 0,
  has_body boolean NOT NULL DEFAULT false,
  is_cancel_requested boolean NOT NULL DEFAULT false,
  reason text,
  error_type text,
  error_message text,
  result json,
  producer text,
  correlation_id text,
  reply_to text,
  published_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  started_at timestamptz,
  finished_at timestamptz,
  due_at timestamptz,
  refused_at timestamptz,
  not_after timestamptz,
  UNIQUE (queue, name, message_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX tasks_due ON {schema}.tasks (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX tasks_recoverable ON {schema}.tasks (worker) WHERE has_body AND due_at IS NULL;

CREATE FUNCTION {schema}.refuse_illegal_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'illegal step of task %: % -> %', OLD.key, OLD.state, NEW.state
    USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER legal_step BEFORE UPDATE ON {schema}.tasks FOR EACH ROW
WHEN (NOT (
  (OLD.state = 'running' AND NEW.state <> 'expired')
  OR (OLD.state IN ('queued', 'retrying') AND NEW.state <> 'succeeded')
  OR (OLD.state = NEW.state AND OLD.epoch = NEW.epoch)
  OR (OLD.state = 'dead' AND NEW.state = 'queued' AND NEW.epoch > OLD.epoch)
))
EXECUTE FUNCTION {schema}.refuse_illegal_step();

CREATE TABLE {schema}.payloads (
  task_key bigint PRIMARY KEY REFERENCES {schema}.tasks (key) ON DELETE CASCADE,
  body bytea NOT NULL,
  properties json NOT NULL
);

CREATE TABLE {schema}.attempts (
  task_key bigint NOT NULL REFERENCES {schema}.tasks (key) ON DELETE CASCADE,
  epoch integer NOT NULL,
  attempt smallint NOT NULL,
  worker uuid,
  outcome text NOT NULL,
  error_type text,
  error_message text,
  traceback text,
  started_at timestamptz,
  ended_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (task_key, epoch)
);

CREATE TABLE {schema}.dead_letters (
  id uuid PRIMARY KEY,
  task_key bigint REFERENCES {schema}.tasks (key) ON DELETE SET NULL,
  queue text NOT NULL,
  name text,
  message_id text,
  reason text NOT NULL,
  error_type text NOT NULL,
  error_message text NOT NULL,
  fingerprint text,
  attempt smallint NOT NULL,
  epoch integer NOT NULL,
  worker uuid,
  body bytea NOT NULL,
  properties json NOT NULL,
  failed_at timestamptz NOT NULL DEFAULT now(),
  resolved_at timestamptz,
  resolution text CHECK (resolution IN ('replayed', 'discarded')),
  CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);

CREATE INDEX dead_letters_open ON {schema}.dead_letters (failed_at) WHERE resolved_at IS NULL;

CREATE INDEX dead_letters_task ON {schema}.dead_letters (task_key);

CREATE TABLE {schema}.outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('copy', 'dead_letter', 'reply')),
  routing_key text NOT NULL,
  task_key bigint REFERENCES {schema}.tasks (key) ON DELETE CASCADE,
  dead_letter uuid REFERENCES {schema}.dead_letters (id) ON DELETE CASCADE,
  epoch integer NOT NULL DEFAULT 0,
  properties json,
  body bytea,
  worker uuid,
  created_at timestamptz NOT NULL DEFAULT now(),
  deliver_at timestamptz NOT NULL,
  available_at timestamptz NOT NULL,
  failures smallint NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

CREATE INDEX outbox_available ON {schema}.outbox (available_at);

CREATE INDEX outbox_task ON {schema}.outbox (task_key) WHERE task_key IS NOT NULL;

CREATE INDEX outbox_letter ON {schema}.outbox (dead_letter) WHERE dead_letter IS NOT NULL;

CREATE TABLE {schema}.workers (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  release text NOT NULL,
  beat bigint NOT NULL DEFAULT 0,
  idle json NOT NULL DEFAULT '{{}}',
  started_at timestamptz NOT NULL DEFAULT now(),
  beat_at timestamptz NOT NULL DEFAULT now(),
  dead_at timestamptz,
  swept_at timestamptz
);

CREATE TABLE {schema}.audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT now(),
  actor text NOT NULL,
  action text NOT NULL,
  task_key bigint,
  dead_letter uuid,
  detail json NOT NULL DEFAULT '{{}}'
);

CREATE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit is insert-only' USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE ON {schema}.audit FOR EACH ROW
EXECUTE FUNCTION {schema}.refuse_change()
"""


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    for statement in STATEMENTS.format(schema=f'"{schema}"').split(";\n\n"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("data is never thrown away by a migration")
