// pg-boss, tuned: node bench.mjs <url> <mode> <count>; prints {"seconds": …} or {"latencies_ms": […]}.
import pg from "pg";
import { PgBoss } from "pg-boss";

const [url, mode, text] = process.argv.slice(2);
const count = Number(text);
// No supervision or schedules in the middle of a run; a batch that came full is followed by the next at once.
const boss = new PgBoss({ connectionString: url, max: 10, supervise: false, schedule: false, useListenNotify: true });
boss.on("error", (error) => console.error(error));
await boss.start();
const queue = "noop";
await boss.createQueue(queue, { notify: true });
const now = () => performance.now();

async function timed(work) {
	const began = now();
	await work();
	return { seconds: (now() - began) / 1000 };
}

const modes = {
	async one() {
		return timed(async () => {
			for (let n = 0; n < count; n++) await boss.send(queue, { n });
		});
	},
	async batch() {
		const jobs = Array.from({ length: count }, (_, n) => ({ data: { n } }));
		return timed(() => boss.insert(queue, jobs));
	},
	async work() {
		await modes.batch();
		let done = 0;
		const shape = (process.env.SHAPE ?? "2x10").split("x").map(Number);
		return timed(
			() =>
				new Promise((resolve) => {
					boss.work(
						queue,
						{ localConcurrency: shape[0], batchSize: shape[1], pollingIntervalSeconds: 0.5, burstWhenBatchFull: true },
						async (jobs) => {
							done += jobs.length;
							// The last batch's completion is the library's own, after this returns.
							if (done >= count) setImmediate(wait);
						},
					);
					async function wait() {
						const client = new pg.Client({ connectionString: url });
						await client.connect();
						const left = "SELECT count(*)::int AS n FROM pgboss.job WHERE name = $1 AND state < 'completed'";
						while ((await client.query(left, [queue])).rows[0].n > 0) await new Promise((r) => setTimeout(r, 5));
						resolve();
					}
				}),
		);
	},
	async idle() {
		let started;
		const latencies = [];
		await boss.work(queue, { batchSize: 1, pollingIntervalSeconds: 0.5, notifyPollingIntervalSeconds: 30 }, async () => started(now()));
		await new Promise((resolve) => setTimeout(resolve, 1500));
		for (let n = 0; n < count; n++) {
			const done = new Promise((resolve) => (started = resolve));
			const began = now();
			await boss.send(queue, { n });
			latencies.push((await done) - began);
			await new Promise((resolve) => setTimeout(resolve, 30));
		}
		return { latencies_ms: latencies };
	},
};
console.log(JSON.stringify(await modes[mode]()));
process.exit(0);
