CREATE TABLE "orchestrator"."starts" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"started_at" timestamp with time zone NOT NULL,
	"recorded_at" timestamp with time zone DEFAULT now() NOT NULL,
	"version" text NOT NULL,
	"host" text NOT NULL,
	"pid" integer NOT NULL,
	"command" text NOT NULL,
	"phases" jsonb NOT NULL,
	"migrations_applied" integer NOT NULL,
	"outcome" text NOT NULL,
	"error" jsonb,
	CONSTRAINT "starts_outcome_check" CHECK ("outcome" IN ('ready', 'migrated', 'failed'))
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."starts" IS 'One row for each start that reached the database: phases are seconds by phase.';
--> statement-breakpoint
CREATE TABLE "orchestrator"."migration_records" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"ledger" text NOT NULL,
	"name" text NOT NULL,
	"hash" text NOT NULL,
	"created_at" bigint NOT NULL,
	"applied_at" timestamp with time zone DEFAULT now() NOT NULL,
	"duration_s" double precision NOT NULL,
	"size_bytes" bigint NOT NULL,
	"text" text,
	"text_gzip" bytea
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."migration_records" IS 'The text of every migration that this program applied; above 1 MiB it is in text_gzip.';
--> statement-breakpoint
CREATE INDEX "migration_records_ledger_index" ON "orchestrator"."migration_records" ("ledger", "created_at");
--> statement-breakpoint
CREATE TABLE "orchestrator"."unfinished_migrations" (
	"ledger" text NOT NULL,
	"name" text NOT NULL,
	"statements_done" integer NOT NULL,
	"done_hash" text NOT NULL,
	"running" integer,
	"since" timestamp with time zone DEFAULT now() NOT NULL,
	PRIMARY KEY ("ledger", "name")
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."unfinished_migrations" IS 'Migrations that a run began or had still to begin, so that the next one goes on after the last finished statement.';
--> statement-breakpoint
CREATE TABLE "orchestrator"."backups" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"recorded_at" timestamp with time zone DEFAULT now() NOT NULL,
	"taken_at" timestamp with time zone NOT NULL,
	"file" text NOT NULL,
	"sha256" text NOT NULL,
	"manifest_hash" text NOT NULL,
	"size_bytes" bigint NOT NULL,
	"duration_s" double precision NOT NULL,
	"reason" text NOT NULL
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."backups" IS 'One row for each backup that was made: a restore compares the file''s checksum and its manifest with it.';
--> statement-breakpoint
CREATE INDEX "backups_taken_index" ON "orchestrator"."backups" ("taken_at");
--> statement-breakpoint
CREATE TABLE "orchestrator"."migration_runs" (
	"ledger" text PRIMARY KEY,
	"name" text NOT NULL,
	"hash" text NOT NULL,
	"statement" integer,
	"losses" integer DEFAULT 0 NOT NULL,
	"server" text NOT NULL,
	"since" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."migration_runs" IS 'Runs of migrations that have not ended, and how often the server went away under the first file.';
