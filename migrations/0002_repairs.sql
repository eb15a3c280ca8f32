CREATE TABLE "orchestrator"."repairs" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"repaired_at" timestamp with time zone DEFAULT now() NOT NULL,
	"ledger" text NOT NULL,
	"action" text NOT NULL,
	"names" text[] NOT NULL,
	"forced" boolean NOT NULL,
	"role" text DEFAULT current_user NOT NULL,
	"login" text DEFAULT session_user NOT NULL,
	"os_user" text NOT NULL,
	"host" text NOT NULL,
	"client_address" inet DEFAULT inet_client_addr(),
	"version" text NOT NULL,
	"before" jsonb NOT NULL,
	"after" jsonb NOT NULL,
	CONSTRAINT "repairs_action_check" CHECK ("action" IN ('accept', 'applied', 'unapplied', 'baseline', 'upgrade'))
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."repairs" IS 'One row for each change of a ledger by hand (orchestrator repair): who, from where, and the ledger''s rows before and after.';
--> statement-breakpoint
CREATE TABLE "orchestrator"."api_changes" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	"changed_at" timestamp with time zone NOT NULL,
	"token" text NOT NULL,
	"address" text NOT NULL,
	"method" text NOT NULL,
	"path" text NOT NULL,
	"status" integer NOT NULL,
	"facts" jsonb NOT NULL
);
--> statement-breakpoint
COMMENT ON TABLE "orchestrator"."api_changes" IS 'One row for each request that changed something through the API: the name of the token that it showed, from where, and what.';
--> statement-breakpoint
CREATE INDEX "api_changes_changed_index" ON "orchestrator"."api_changes" ("changed_at");
--> statement-breakpoint
-- Who asked for a job, and what was done to it.
CREATE INDEX "api_changes_job_index" ON "orchestrator"."api_changes" (("facts" ->> 'job')) WHERE ("facts" ->> 'job') IS NOT NULL;
