"""What handlers ask for beside their outcome: progress, checkpoints, deadlines, messages of their own."""

from __future__ import annotations

from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# only what a release on schema 0001 does not notice: columns with a constant default, tables, functions
STATEMENTS = """
ALTER TABLE {schema}.tasks
  ADD COLUMN progress real CHECK (progress BETWEEN 0 AND 1),
  ADD COLUMN progress_note text,
  ADD COLUMN deadline_at timestamptz,
  ADD COLUMN is_awaited boolean NOT NULL DEFAULT false;

CREATE TABLE {schema}.checkpoints (
  task_key bigint PRIMARY KEY REFERENCES {schema}.tasks (key) ON DELETE CASCADE,
  state json NOT NULL,
  saved_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE {schema}.outbox
  ADD COLUMN exchange text,
  DROP CONSTRAINT outbox_kind_check,
  ADD CONSTRAINT outbox_kind_check CHECK (kind IN ('copy', 'dead_letter', 'reply', 'event'));

CREATE FUNCTION {schema}.complete(
  task_key bigint, task_epoch integer, task_worker uuid, task_result json, task_reply text
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  ended record;
BEGIN
  UPDATE {schema}.tasks t SET state = 'succeeded', finished_at = now(), result = task_result,
    has_body = false, reason = NULL, error_type = NULL, error_message = NULL
  WHERE t.key = task_key AND t.epoch = task_epoch AND t.worker = task_worker AND t.state = 'running'
  RETURNING t.reply_to, t.correlation_id, t.is_awaited INTO ended;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'the attempt is not this worker''s any more' USING ERRCODE = 'BW001';
  END IF;
  IF ended.reply_to IS NOT NULL AND task_reply IS NOT NULL THEN
    INSERT INTO {schema}.outbox (kind, routing_key, task_key, properties, body, deliver_at, available_at)
    VALUES ('reply', ended.reply_to, task_key, json_build_object('correlation_id', ended.correlation_id),
            convert_to(task_reply, 'UTF8'), now(), now());
  END IF;
  IF ended.is_awaited THEN
    PERFORM pg_notify(trim(both '"' from '{schema}'), 'ended:' || task_key);
  END IF;
END $$
"""


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    for statement in STATEMENTS.format(schema=f'"{schema}"').split(";\n\n"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("data is never thrown away by a migration")
