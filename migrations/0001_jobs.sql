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
	"created_at" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	"started_at" timestamp with time zone,
	"finished_at" timestamp with time zone,
	"worker" text,
	"claim" bigint,
	"dedupe_key" text,
	"idempotency_key" text,
	"schedule" text,
	"payload" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"output" jsonb,
	"error" jsonb,
	"progress" jsonb,
	"unreadable" text[],
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
-- A running job belongs to its worker for as long as the worker's row in workers is renewed. The pair of worker and
-- claim is its fence: a worker counts its claims in memory, so no crash of the server gives a number twice.
COMMENT ON COLUMN "orchestrator"."jobs"."claim" IS 'The number of the claim that took it last, counted by its worker: no pair of worker and claim comes twice.';
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."jobs"."unreadable" IS 'Hashes of payload schemas that could not decode its payload: workers that know no other leave it alone.';
--> statement-breakpoint
-- The order of a claim, whatever the handler: its cost does not grow with the number of handlers.
CREATE INDEX "jobs_ready_index" ON "orchestrator"."jobs" ("priority" DESC, "id") WHERE "state" = 'queued';
--> statement-breakpoint
-- The same for each handler: for limits, and where much waits that nobody here can run.
CREATE INDEX "jobs_queued_index" ON "orchestrator"."jobs" ("name", "priority" DESC, "id") WHERE "state" = 'queued';
--> statement-breakpoint
CREATE INDEX "jobs_scheduled_index" ON "orchestrator"."jobs" ("run_at") WHERE "state" = 'scheduled';
--> statement-breakpoint
-- Those that run are few.
CREATE INDEX "jobs_running_index" ON "orchestrator"."jobs" ("name") WHERE "state" = 'running';
--> statement-breakpoint
-- For lists: the jobs of one name, state and queue stand in the order of their ids, and each filter is a walk over few such
-- groups. An entry when a job is added and one when it has ended, so that claims pay for none of it.
CREATE INDEX "jobs_list_index" ON "orchestrator"."jobs" ("name", "state", "queue", "id") WHERE "state" <> 'running';
--> statement-breakpoint
CREATE INDEX "jobs_finished_index" ON "orchestrator"."jobs" ("finished_at") WHERE "finished_at" IS NOT NULL;
--> statement-breakpoint
-- What the last runs of each schedule were.
CREATE INDEX "jobs_schedule_index" ON "orchestrator"."jobs" ("schedule", "state", "id") WHERE "schedule" IS NOT NULL;
--> statement-breakpoint
CREATE INDEX "jobs_failed_index" ON "orchestrator"."jobs" ("id") WHERE "state" IN ('failed', 'cancelled');
--> statement-breakpoint
-- What failed and waits to be tried again.
CREATE INDEX "jobs_retrying_index" ON "orchestrator"."jobs" ("id") WHERE "attempt" > 0 AND "state" IN ('scheduled', 'queued');
--> statement-breakpoint
CREATE UNIQUE INDEX "jobs_dedupe_index" ON "orchestrator"."jobs" ("name", "dedupe_key") WHERE "dedupe_key" IS NOT NULL AND "state" IN ('scheduled', 'queued', 'running');
--> statement-breakpoint
CREATE UNIQUE INDEX "jobs_idempotency_index" ON "orchestrator"."jobs" ("idempotency_key") WHERE "idempotency_key" IS NOT NULL;
--> statement-breakpoint
-- Idempotency keys whose request was answered by a job that has another key or none: one with the same dedupe key.
CREATE TABLE "orchestrator"."idempotency_keys" (
	"key" text PRIMARY KEY,
	"job_id" bigint NOT NULL,
	"name" text NOT NULL,
	"payload" jsonb NOT NULL
);
--> statement-breakpoint
CREATE INDEX "idempotency_keys_job_index" ON "orchestrator"."idempotency_keys" ("job_id");
--> statement-breakpoint
-- One row for each attempt that has ended other than well. The one that runs stands in jobs, and so does the one that
-- succeeded: it is the last, and nothing changes the row any more. No foreign key: it would lock and look up the job's
-- row for each insert. A trigger on jobs removes what belongs to a job that is deleted.
CREATE TABLE "orchestrator"."job_attempts" (
	"job_id" bigint NOT NULL,
	"attempt" integer NOT NULL,
	"worker" text,
	"started_at" timestamp with time zone,
	"finished_at" timestamp with time zone DEFAULT now() NOT NULL,
	"outcome" text NOT NULL,
	"error" jsonb,
	PRIMARY KEY ("job_id", "attempt"),
	CONSTRAINT "job_attempts_outcome_check" CHECK ("outcome" IN ('failed', 'timed_out', 'cancelled', 'lost', 'interrupted'))
);
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."job_attempts"."outcome" IS 'lost: its worker fell silent for longer than the lease; interrupted: its server was stopped, and the attempt does not count.';
--> statement-breakpoint
CREATE VIEW "orchestrator"."attempts" AS
SELECT "job_id", "attempt", "outcome", "worker", "started_at", "finished_at", "error" FROM "orchestrator"."job_attempts"
UNION ALL
SELECT "id", "attempt", 'succeeded', "worker", "started_at", "finished_at", NULL FROM "orchestrator"."jobs" WHERE "state" = 'succeeded';
--> statement-breakpoint
COMMENT ON VIEW "orchestrator"."attempts" IS 'One row for each attempt that has ended, however it ended.';
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
	"at" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	"job_id" bigint NOT NULL,
	"attempt" integer NOT NULL,
	"name" text NOT NULL,
	"queue" text NOT NULL,
	"kind" text DEFAULT 'transition' NOT NULL,
	"state" text,
	"was" text,
	"facts" jsonb,
	CONSTRAINT "job_events_kind_check" CHECK ("kind" IN ('transition', 'progress'))
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."job_events" IS 'A row a transition, and progress. Ids can become visible out of their order.';
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."job_events"."was" IS 'The state before; null where the job was added. The counts of jobs are kept by it.';
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
COMMENT ON COLUMN "orchestrator"."schedules"."source" IS 'code: follows @job(schedule=...) at each start; api: a person changed it, and code does not overwrite it.';
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
	"handlers" text[] NOT NULL,
	"schemas" text[] DEFAULT '{}'::text[] NOT NULL,
	"settled_at" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	"taken_over" integer DEFAULT 0 NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."workers"."seen_at" IS 'When the lease was renewed: whatever this worker has claimed is its own until lease_s later.';
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."workers"."settled_at" IS 'When this worker last compared what it runs with what it has claimed.';
--> statement-breakpoint
COMMENT ON COLUMN "orchestrator"."workers"."taken_over" IS 'How often jobs were taken from it: a worker that finds another number compares at once.';
--> statement-breakpoint
-- Claims commit asynchronously, so a crash of the server can undo the newest. PostgreSQL empties an unlogged table in a
-- crash, and on a standby that is promoted: where it is empty, workers compare first, and only then does anyone claim.
CREATE UNLOGGED TABLE "orchestrator"."server_runs" (
	"only" boolean PRIMARY KEY DEFAULT true,
	"since" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	CONSTRAINT "server_runs_only_check" CHECK ("only")
);
--> statement-breakpoint
-- A row a handler with a limit: locked while its jobs are counted and claimed. A row, and no advisory lock, since every
-- role of the database may take that, and this only those that may write our tables.
CREATE TABLE "orchestrator"."job_limits" (
	"name" text PRIMARY KEY
);
--> statement-breakpoint
-- Queues whose jobs nobody claims for now. What runs goes on; what is added waits.
CREATE TABLE "orchestrator"."paused_queues" (
	"queue" text PRIMARY KEY,
	"paused_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
-- Jobs by name, queue and state are counted without reading the jobs: job_counts has what was counted, in rows that are
-- only added to and taken together, so nobody waits for anybody; the events after job_count_position are not in it yet,
-- and whoever reads adds them (job_figures), in one snapshot. What changes a job writes an event anyway, and pays nothing.
CREATE TABLE "orchestrator"."job_counts" (
	"name" text NOT NULL,
	"queue" text NOT NULL,
	"state" text NOT NULL,
	"count" bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
--> statement-breakpoint
CREATE INDEX "job_counts_index" ON "orchestrator"."job_counts" ("name", "queue", "state");
--> statement-breakpoint
-- How many jobs ended in each ten seconds; slot is those since 1970.
CREATE TABLE "orchestrator"."job_endings" (
	"queue" text NOT NULL,
	"slot" bigint NOT NULL,
	"count" bigint NOT NULL,
	PRIMARY KEY ("slot", "queue")
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
--> statement-breakpoint
-- Events up to folded are counted, but for those in gaps: ids that were drawn and could not be seen. A gap that was there
-- when boundary was the next transaction, and that all earlier ones have left open, stays empty for good.
CREATE TABLE "orchestrator"."job_count_position" (
	"only" boolean PRIMARY KEY DEFAULT true,
	"folded" bigint DEFAULT 0 NOT NULL,
	"gaps" int8multirange DEFAULT '{}' NOT NULL,
	"closing" int8multirange DEFAULT '{}' NOT NULL,
	"boundary" xid8 DEFAULT '0' NOT NULL,
	CONSTRAINT "job_count_position_only_check" CHECK ("only")
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
--> statement-breakpoint
INSERT INTO "orchestrator"."job_count_position" DEFAULT VALUES;
--> statement-breakpoint
CREATE VIEW "orchestrator"."uncounted_events" AS
SELECT e."id", e."at", e."name", e."queue", e."state", e."was"
FROM "orchestrator"."job_count_position" p CROSS JOIN LATERAL (
	SELECT * FROM "orchestrator"."job_events" n WHERE n."id" > p."folded"
	UNION ALL
	SELECT n.* FROM unnest(p."gaps") AS g("span") CROSS JOIN LATERAL (
		SELECT * FROM "orchestrator"."job_events" n WHERE n."id" >= lower(g."span") AND n."id" < upper(g."span")
		ORDER BY n."id"
	) n
) e;
--> statement-breakpoint
CREATE VIEW "orchestrator"."job_figures" AS
WITH "uncounted" AS MATERIALIZED (
	SELECT e."name", e."queue", e."state", e."was" FROM "orchestrator"."uncounted_events" e WHERE e."state" IS NOT NULL
)
SELECT c."name", c."queue", c."state", sum(c."count")::bigint AS "count"
FROM (
	SELECT * FROM "orchestrator"."job_counts"
	UNION ALL
	SELECT u."name", u."queue", u."state", 1 AS "count" FROM "uncounted" u
	UNION ALL
	SELECT u."name", u."queue", u."was", -1 AS "count" FROM "uncounted" u WHERE u."was" IS NOT NULL
) c
GROUP BY 1, 2, 3 HAVING sum(c."count") <> 0;
--> statement-breakpoint
COMMENT ON VIEW "orchestrator"."job_figures" IS 'How many jobs there are of each name, queue and state, as exact as counting them.';
--> statement-breakpoint
-- Counts the oldest p_most events that are not counted yet; one caller at a time does, and the others go on. With
-- p_recount the jobs themselves are counted, for what others than orchestrator have changed. Tells how many
-- events were counted, and how many counts were wrong.
CREATE FUNCTION "orchestrator"."count_jobs"(p_recount boolean, p_most integer, OUT "counted" integer, OUT "wrong" integer)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
	counted := 0;
	wrong := 0;
	PERFORM FROM orchestrator.job_count_position FOR UPDATE SKIP LOCKED;
	IF NOT FOUND THEN
		RETURN;
	END IF;
	IF p_recount THEN
		-- Added, not set: what is deleted meanwhile is taken off by its own row.
		WITH differing AS (
			SELECT name, queue, state, sum(n) AS n FROM (
				SELECT j.name, j.queue, j.state, count(*) AS n FROM orchestrator.jobs j GROUP BY 1, 2, 3
				UNION ALL
				SELECT f.name, f.queue, f.state, -f.count FROM orchestrator.job_figures f
			) both_ways GROUP BY 1, 2, 3 HAVING sum(n) <> 0
		)
		INSERT INTO orchestrator.job_counts (name, queue, state, count) SELECT w.name, w.queue, w.state, w.n FROM differing w;
		GET DIAGNOSTICS wrong = ROW_COUNT;
	END IF;
	WITH found AS MATERIALIZED (
		SELECT e.id, e.at, e.name, e.queue, e.state, e.was, e.id > p.folded AS is_new
		FROM orchestrator.job_count_position p CROSS JOIN LATERAL (
			(SELECT * FROM orchestrator.job_events n WHERE n.id > p.folded ORDER BY n.id LIMIT p_most)
			UNION ALL
			SELECT n.* FROM unnest(p.gaps) AS g(span) CROSS JOIN LATERAL (
				SELECT * FROM orchestrator.job_events n WHERE n.id >= lower(g.span) AND n.id < upper(g.span)
				ORDER BY n.id
			) n
		) e
	), changes AS MATERIALIZED (
		SELECT c.name, c.queue, c.state, sum(c.n) AS n FROM (
			SELECT f.name, f.queue, f.state, 1 AS n FROM found f WHERE f.state IS NOT NULL
			UNION ALL
			SELECT f.name, f.queue, f.was, -1 FROM found f WHERE f.state IS NOT NULL AND f.was IS NOT NULL
		) c GROUP BY 1, 2, 3
		UNION ALL
		SELECT d.name, d.queue, d.state, 0 FROM orchestrator.job_counts d WHERE d.count < 0
	), taken AS (
		DELETE FROM orchestrator.job_counts t USING (SELECT DISTINCT name, queue, state FROM changes) c
		WHERE t.name = c.name AND t.queue = c.queue AND t.state = c.state
		RETURNING t.name, t.queue, t.state, t.count
	), counted AS (
		INSERT INTO orchestrator.job_counts (name, queue, state, count)
		SELECT b.name, b.queue, b.state, sum(b.n) FROM (
			SELECT c.name, c.queue, c.state, c.n FROM changes c
			UNION ALL
			SELECT t.name, t.queue, t.state, t.count FROM taken t
		) b GROUP BY 1, 2, 3 HAVING sum(b.n) <> 0
	), ended AS (
		INSERT INTO orchestrator.job_endings AS k (queue, slot, count)
		SELECT f.queue, floor(extract(epoch FROM f.at) / 10)::bigint, count(*) FROM found f
		WHERE f.state IN ('succeeded', 'failed', 'cancelled')
		GROUP BY 1, 2
		ON CONFLICT (slot, queue) DO UPDATE SET count = k.count + excluded.count
	), forgotten AS (
		DELETE FROM orchestrator.job_endings k
		WHERE k.slot < floor(extract(epoch FROM now()) / 10)::bigint - 360
	), holes AS (
		SELECT range_agg(int8range(h.low, h.id)) AS spans FROM (
			SELECT f.id, lag(f.id, 1, p.folded) OVER (ORDER BY f.id) + 1 AS low
			FROM found f CROSS JOIN orchestrator.job_count_position p WHERE f.is_new
		) h WHERE h.low < h.id
	), open AS (
		SELECT p.gaps - coalesce((SELECT range_agg(int8range(f.id, f.id, '[]')) FROM found f WHERE NOT f.is_new), '{}')
			+ coalesce((SELECT h.spans FROM holes h), '{}') AS gaps,
			pg_snapshot_xmin(s) >= p.boundary AS is_over, pg_snapshot_xmax(s) AS next
		FROM orchestrator.job_count_position p CROSS JOIN pg_current_snapshot() s
	)
	UPDATE orchestrator.job_count_position p SET
		folded = greatest(p.folded, (SELECT max(f.id) FROM found f)),
		gaps = CASE WHEN o.is_over THEN o.gaps - p.closing ELSE o.gaps END,
		closing = CASE WHEN o.is_over THEN o.gaps - p.closing ELSE p.closing END,
		boundary = CASE WHEN o.is_over THEN o.next ELSE p.boundary END
	FROM open o
	RETURNING (SELECT count(*) FROM found) INTO counted;
END $$;
--> statement-breakpoint
CREATE FUNCTION "orchestrator"."forget_deleted_jobs"() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM "orchestrator"."job_attempts" a USING gone g WHERE a."job_id" = g."id";
	DELETE FROM "orchestrator"."job_logs" l USING gone g WHERE l."job_id" = g."id";
	DELETE FROM "orchestrator"."idempotency_keys" k USING gone g WHERE k."job_id" = g."id";
	INSERT INTO "orchestrator"."job_counts" ("name", "queue", "state", "count")
	SELECT g."name", g."queue", g."state", -count(*) FROM gone g GROUP BY 1, 2, 3;
	RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER "jobs_forgotten" AFTER DELETE ON "orchestrator"."jobs" REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION "orchestrator"."forget_deleted_jobs"();
--> statement-breakpoint
-- The clock of the schedules: one for all replicas.
CREATE FUNCTION "orchestrator"."clock"() RETURNS timestamp with time zone LANGUAGE sql VOLATILE RETURN pg_catalog.clock_timestamp();
--> statement-breakpoint
-- Takes up to p_room jobs for a worker. A function, because each of its statements sees what was committed before it
-- (a limit is counted after its lock is held, in one way to the server), and because of the settings: a plan that was
-- made while the table was small reads a million rows later on.
--
-- p_after_priority and p_after_id say where the last claim ended: what stands before that place is claimed, or dead, and
-- an old snapshot may keep the dead from being removed. Null begins at the front, which the caller does now and then.
-- p_by_name reads each handler's own queue: for a front of the queue that is full of what this worker cannot run.
CREATE FUNCTION "orchestrator"."claim_jobs"(p_worker text, p_claim bigint, p_room integer, p_names text[], p_limited text[], p_limits integer[], p_schemas text[], p_after_priority integer, p_after_id bigint, p_by_name boolean)
RETURNS TABLE ("id" bigint, "name" text, "attempt" integer, "max_attempts" integer, "timeout_s" double precision, "payload" text, "priority" integer)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
	v_must_wait boolean;
	v_has_due boolean;
	v_from_place boolean;
	v_limited text[];
	v_rooms integer[];
	v_paused text[];
	v_picked bigint[];
	v_more bigint[];
	v_facts jsonb := jsonb_build_object('worker', p_worker);
BEGIN
	-- Who is not known to live must not take what would be taken over at once.
	SELECT ARRAY(SELECT p.queue FROM orchestrator.paused_queues p),
		s.since IS NULL OR s.since > clock_timestamp() - interval '5 seconds' AND EXISTS (
			SELECT FROM orchestrator.workers o WHERE o.id <> p_worker
				AND o.settled_at < s.since AND o.seen_at > s.since - make_interval(secs => o.lease_s)
		),
		EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'scheduled' AND j.run_at <= now()),
		p_after_id IS NOT NULL AND NOT EXISTS (
			SELECT FROM orchestrator.jobs j WHERE j.state = 'queued' AND j.priority > p_after_priority
		)
	INTO v_paused, v_must_wait, v_has_due, v_from_place
	FROM orchestrator.workers w LEFT JOIN orchestrator.server_runs s ON true
	WHERE w.id = p_worker AND w.seen_at > clock_timestamp() - make_interval(secs => w.lease_s / 2);
	IF NOT FOUND OR v_must_wait THEN
		RETURN;
	END IF;
	IF v_has_due THEN
		WITH due AS (
			SELECT j.id FROM orchestrator.jobs j WHERE j.state = 'scheduled' AND j.run_at <= now()
			ORDER BY j.run_at LIMIT 1000 FOR UPDATE SKIP LOCKED
		), queued AS (
			UPDATE orchestrator.jobs j SET state = 'queued' FROM due WHERE j.id = due.id
			RETURNING j.id, j.attempt, j.name, j.queue
		)
		INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was)
		SELECT q.id, q.attempt, q.name, q.queue, 'queued', 'scheduled' FROM queued q;
	END IF;
	IF cardinality(p_limited) > 0 THEN
		SELECT array_agg(w.name) INTO v_limited
		FROM (
			SELECT k.name FROM unnest(p_limited) AS l(name) JOIN orchestrator.job_limits k ON k.name = l.name
			WHERE EXISTS (
				SELECT FROM orchestrator.jobs j
				WHERE j.state = 'queued' AND j.name = l.name AND j.queue <> ALL(v_paused)
			)
			FOR UPDATE OF k SKIP LOCKED
		) w;
	END IF;
	IF v_limited IS NOT NULL THEN
		-- Counted behind the locks, by a statement of its own.
		SELECT array_agg(w.name), array_agg(w.room) INTO v_limited, v_rooms
		FROM (
			SELECT l.name, least(p_room, l.most - (
				SELECT count(*)::integer FROM orchestrator.jobs j WHERE j.state = 'running' AND j.name = l.name
			)) AS room
			FROM unnest(p_limited, p_limits) AS l(name, most) WHERE l.name = ANY(v_limited)
		) w
		WHERE w.room > 0;
	END IF;
	IF p_by_name THEN
		v_limited := v_limited || p_names;
		v_rooms := v_rooms || array_fill(p_room, ARRAY[cardinality(p_names)]);
	ELSE
		IF v_from_place THEN
			SELECT array_agg(c.id) INTO v_picked
			FROM (
				SELECT j.id FROM orchestrator.jobs j
				WHERE j.state = 'queued' AND j.priority = p_after_priority AND j.id > p_after_id
					AND j.name = ANY(p_names) AND j.queue <> ALL(v_paused)
					AND (j.unreadable IS NULL OR NOT j.unreadable && p_schemas)
				ORDER BY j.priority DESC, j.id LIMIT p_room FOR UPDATE SKIP LOCKED
			) c;
		END IF;
		IF v_picked IS NULL OR cardinality(v_picked) < p_room THEN
			SELECT array_agg(c.id) INTO v_picked
			FROM (
				SELECT j.id FROM orchestrator.jobs j
				WHERE j.state = 'queued' AND j.name = ANY(p_names) AND j.queue <> ALL(v_paused)
					AND (j.unreadable IS NULL OR NOT j.unreadable && p_schemas)
				ORDER BY j.priority DESC, j.id LIMIT p_room FOR UPDATE SKIP LOCKED
			) c;
		END IF;
	END IF;
	IF cardinality(v_limited) > 0 THEN
		SELECT array_agg(c.id) INTO v_more
		FROM unnest(v_limited, v_rooms) AS w(name, room)
		CROSS JOIN LATERAL (
			SELECT j.id FROM orchestrator.jobs j
			WHERE j.state = 'queued' AND j.name = w.name AND j.queue <> ALL(v_paused)
				AND (j.unreadable IS NULL OR NOT j.unreadable && p_schemas)
			ORDER BY j.priority DESC, j.id LIMIT w.room FOR UPDATE SKIP LOCKED
		) c;
		SELECT array_agg(c.id) INTO v_picked
		FROM (
			SELECT j.id FROM orchestrator.jobs j WHERE j.id = ANY(v_picked || v_more)
			ORDER BY j.priority DESC, j.id LIMIT p_room
		) c;
	END IF;
	IF v_picked IS NULL THEN
		RETURN;
	END IF;
	RETURN QUERY
	WITH claimed AS (
		UPDATE orchestrator.jobs j
		SET state = 'running', attempt = j.attempt + 1, worker = p_worker, claim = p_claim, started_at = now(),
			progress = NULL
		WHERE j.id = ANY(v_picked)
		RETURNING j.id, j.name, j.queue, j.attempt, j.max_attempts, j.timeout_s, j.payload, j.priority
	), told AS (
		INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
		SELECT c.id, c.attempt, c.name, c.queue, 'running', 'queued', v_facts FROM claimed c
	)
	SELECT c.id, c.name, c.attempt, c.max_attempts, c.timeout_s, c.payload::text, c.priority
	FROM claimed c ORDER BY c.priority DESC, c.id;
END $$;
