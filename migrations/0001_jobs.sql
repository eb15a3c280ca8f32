CREATE TABLE "orchestrator"."jobs" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"name" text NOT NULL,
	"queue" text DEFAULT 'default' NOT NULL,
	"state" text NOT NULL,
	"priority" integer DEFAULT 0 NOT NULL,
	"attempt" integer DEFAULT 0 NOT NULL,
	"max_attempts" integer DEFAULT 1 NOT NULL,
	"cancel_requested" boolean DEFAULT false NOT NULL,
	"timeout_s" double precision,
	"run_at" timestamp with time zone DEFAULT now() NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"started_at" timestamp with time zone,
	"finished_at" timestamp with time zone,
	"lease_until" timestamp with time zone,
	"worker" text,
	"dedupe_key" text,
	"idempotency_key" text,
	"schedule" text,
	"payload" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"output" jsonb,
	"error" jsonb,
	"progress" jsonb,
	CONSTRAINT "jobs_state_check" CHECK ("state" IN ('scheduled', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
	CONSTRAINT "jobs_attempts_check" CHECK ("max_attempts" >= 1 AND "attempt" >= 0)
) WITH (
	fillfactor = 85,
	autovacuum_vacuum_scale_factor = 0.01,
	autovacuum_vacuum_threshold = 5000,
	autovacuum_vacuum_insert_scale_factor = 0.1,
	autovacuum_analyze_scale_factor = 0.05
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."jobs" IS 'One row a job, kept when finished. Written by orchestrator alone; to add one, use its API or orchestrator.jobs.enqueue.';
--> statement-breakpoint
-- The order of a claim: per handler, so that what nobody here can run costs nobody anything.
CREATE INDEX "jobs_queued_index" ON "orchestrator"."jobs" ("name", "priority" DESC, "id") WHERE "state" = 'queued';
--> statement-breakpoint
CREATE INDEX "jobs_scheduled_index" ON "orchestrator"."jobs" ("run_at") WHERE "state" = 'scheduled';
--> statement-breakpoint
-- The lease is in no index, so that a heartbeat is a HOT update; those that run are few.
CREATE INDEX "jobs_running_index" ON "orchestrator"."jobs" ("name") WHERE "state" = 'running';
--> statement-breakpoint
CREATE INDEX "jobs_finished_index" ON "orchestrator"."jobs" ("finished_at") WHERE "finished_at" IS NOT NULL;
--> statement-breakpoint
CREATE INDEX "jobs_failed_index" ON "orchestrator"."jobs" ("id") WHERE "state" IN ('failed', 'cancelled');
--> statement-breakpoint
CREATE UNIQUE INDEX "jobs_dedupe_index" ON "orchestrator"."jobs" ("name", "dedupe_key") WHERE "dedupe_key" IS NOT NULL AND "state" IN ('scheduled', 'queued', 'running');
--> statement-breakpoint
CREATE UNIQUE INDEX "jobs_idempotency_index" ON "orchestrator"."jobs" ("idempotency_key") WHERE "idempotency_key" IS NOT NULL;
--> statement-breakpoint
-- One row for each attempt that has ended; the one that runs stands in jobs. No foreign key: it would lock and look up
-- the job's row for each insert. A trigger on jobs removes what belongs to a job that is deleted.
CREATE TABLE "orchestrator"."job_attempts" (
	"job_id" bigint NOT NULL,
	"attempt" integer NOT NULL,
	"worker" text,
	"started_at" timestamp with time zone,
	"finished_at" timestamp with time zone DEFAULT now() NOT NULL,
	"outcome" text NOT NULL,
	"error" jsonb,
	PRIMARY KEY ("job_id", "attempt"),
	CONSTRAINT "job_attempts_outcome_check" CHECK ("outcome" IN ('succeeded', 'failed', 'timed_out', 'cancelled', 'lost', 'interrupted'))
);
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."job_attempts"."outcome" IS 'lost: its worker fell silent for longer than the lease; interrupted: its server was stopped, and the attempt does not count.';
--> statement-breakpoint
CREATE TABLE "orchestrator"."job_logs" (
	"id" bigint GENERATED ALWAYS AS IDENTITY,
	"job_id" bigint NOT NULL,
	"attempt" integer NOT NULL,
	"at" timestamp with time zone NOT NULL,
	"level" text NOT NULL,
	"event" text NOT NULL,
	"facts" jsonb,
	PRIMARY KEY ("job_id", "id")
);
--> statement-breakpoint
CREATE TABLE "orchestrator"."job_events" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"transaction" xid8 DEFAULT pg_current_xact_id() NOT NULL,
	"at" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	"job_id" bigint NOT NULL,
	"attempt" integer NOT NULL,
	"name" text NOT NULL,
	"queue" text NOT NULL,
	"kind" text DEFAULT 'transition' NOT NULL,
	"state" text,
	"facts" jsonb,
	CONSTRAINT "job_events_kind_check" CHECK ("kind" IN ('transition', 'progress'))
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."job_events" IS 'A row a transition, and progress. Ids can become visible out of order: read below pg_snapshot_xmin(pg_current_snapshot()).';
--> statement-breakpoint
CREATE INDEX "job_events_at_index" ON "orchestrator"."job_events" USING brin ("at") WITH (pages_per_range = 16, autosummarize = on);
--> statement-breakpoint
CREATE TABLE "orchestrator"."schedules" (
	"name" text PRIMARY KEY,
	"job" text NOT NULL,
	"cron" text NOT NULL,
	"timezone" text DEFAULT 'UTC' NOT NULL,
	"payload" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"enabled" boolean DEFAULT true NOT NULL,
	"source" text NOT NULL,
	"next_run_at" timestamp with time zone,
	"last_run_at" timestamp with time zone,
	"last_job_id" bigint,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "schedules_source_check" CHECK ("source" IN ('code', 'api'))
) WITH (fillfactor = 50);
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."schedules"."source" IS 'code: follows @job(schedule=…) at each start; api: a person changed it, and code does not overwrite it.';
--> statement-breakpoint
CREATE TABLE "orchestrator"."workers" (
	"id" text PRIMARY KEY,
	"host" text NOT NULL,
	"pid" integer NOT NULL,
	"version" text NOT NULL,
	"started_at" timestamp with time zone DEFAULT now() NOT NULL,
	"seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	"concurrency" integer NOT NULL,
	"running" integer DEFAULT 0 NOT NULL,
	"lease_s" double precision NOT NULL,
	"handlers" text[] NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
--> statement-breakpoint
-- A row a handler with a limit: locked while its jobs are counted and claimed. A row, and no advisory lock, since every
-- role of the database may take that, and this only those that may write our tables.
CREATE TABLE "orchestrator"."job_limits" (
	"name" text PRIMARY KEY
);
--> statement-breakpoint
CREATE FUNCTION "orchestrator"."forget_deleted_jobs"() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM "orchestrator"."job_attempts" a USING gone g WHERE a."job_id" = g."id";
	DELETE FROM "orchestrator"."job_logs" l USING gone g WHERE l."job_id" = g."id";
	RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER "jobs_forgotten" AFTER DELETE ON "orchestrator"."jobs" REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION "orchestrator"."forget_deleted_jobs"();
--> statement-breakpoint
-- The clock of the schedules: one for all replicas.
CREATE FUNCTION "orchestrator"."clock"() RETURNS timestamp with time zone LANGUAGE sql VOLATILE RETURN pg_catalog.clock_timestamp();
--> statement-breakpoint
-- Takes up to "room" jobs for a worker. A function, because each of its statements sees what was committed before it
-- (a limit is counted after its lock is held, in one way to the server), and because of the settings: a plan that was
-- made while the table was small reads a million rows later on.
CREATE FUNCTION "orchestrator"."claim_jobs"(p_worker text, p_lease_s double precision, p_room integer, p_names text[], p_limited text[], p_limits integer[])
RETURNS TABLE ("id" bigint, "name" text, "queue" text, "attempt" integer, "max_attempts" integer, "timeout_s" double precision, "payload" text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
	v_names text[] := p_names;
	v_rooms integer[] := array_fill(p_room, ARRAY[cardinality(p_names)]);
	v_limited text[];
	v_limits integer[];
	v_left text[];
	v_left_rooms integer[];
BEGIN
	IF EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'scheduled' AND j.run_at <= now()) THEN
		WITH due AS (
			SELECT j.id FROM orchestrator.jobs j WHERE j.state = 'scheduled' AND j.run_at <= now()
			ORDER BY j.run_at LIMIT 1000 FOR UPDATE SKIP LOCKED
		), queued AS (
			UPDATE orchestrator.jobs j SET state = 'queued' FROM due WHERE j.id = due.id
			RETURNING j.id, j.attempt, j.name, j.queue
		)
		INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)
		SELECT q.id, q.attempt, q.name, q.queue, 'queued' FROM queued q;
	END IF;
	IF cardinality(p_limited) > 0 THEN
		SELECT array_agg(w.name), array_agg(w.most) INTO v_limited, v_limits
		FROM (
			SELECT l.name, l.most FROM unnest(p_limited, p_limits) AS l(name, most)
			JOIN orchestrator.job_limits k ON k.name = l.name
			WHERE EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'queued' AND j.name = l.name)
			FOR UPDATE OF k SKIP LOCKED
		) w;
		IF v_limited IS NOT NULL THEN
			SELECT array_agg(w.name), array_agg(w.room) INTO v_left, v_left_rooms
			FROM (
				SELECT l.name, least(p_room, l.most - (
					SELECT count(*)::integer FROM orchestrator.jobs j WHERE j.state = 'running' AND j.name = l.name
				)) AS room
				FROM unnest(v_limited, v_limits) AS l(name, most)
			) w
			WHERE w.room > 0;
			v_names := v_names || v_left;
			v_rooms := v_rooms || v_left_rooms;
		END IF;
	END IF;
	RETURN QUERY
	WITH picked AS (
		SELECT c.id FROM unnest(v_names, v_rooms) AS w(name, room)
		CROSS JOIN LATERAL (
			SELECT j.id, j.priority FROM orchestrator.jobs j
			WHERE j.state = 'queued' AND j.name = w.name
			ORDER BY j.priority DESC, j.id LIMIT w.room FOR UPDATE SKIP LOCKED
		) c
		ORDER BY c.priority DESC, c.id LIMIT p_room
	), claimed AS (
		UPDATE orchestrator.jobs j
		SET state = 'running', attempt = j.attempt + 1, worker = p_worker, started_at = now(),
			lease_until = now() + make_interval(secs => p_lease_s), progress = NULL
		FROM picked WHERE j.id = picked.id
		RETURNING j.id, j.name, j.queue, j.attempt, j.max_attempts, j.timeout_s, j.payload, j.priority
	), told AS (
		INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, facts)
		SELECT c.id, c.attempt, c.name, c.queue, 'running', jsonb_build_object('worker', p_worker) FROM claimed c
	)
	SELECT c.id, c.name, c.queue, c.attempt, c.max_attempts, c.timeout_s, c.payload::text
	FROM claimed c ORDER BY c.priority DESC, c.id;
END $$;
