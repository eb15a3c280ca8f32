// A cron line in words: `0 3 * * 1-5` is "at 03:00, Monday to Friday". What it cannot say in words it shows as it is.

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS = [
  ...["January", "February", "March", "April", "May", "June", "July"],
  ...["August", "September", "October", "November", "December"],
];
const SHORT = { days: ["sun", "mon", "tue", "wed", "thu", "fri", "sat"], months: MONTHS.map((m) => m.slice(0, 3).toLowerCase()) };

const two = (n) => String(n).padStart(2, "0");

/** "1, 2 and 5" */
const list = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

const ordinal = (n) => `${n}${{ 1: "st", 2: "nd", 3: "rd" }[n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;

function number(text, names, first) {
  const at = names.indexOf(text.toLowerCase());
  return at >= 0 ? at + first : /^\d+$/.test(text) ? Number(text) : NaN;
}

/** A field with names ("1-5", "MON,WED") in words; null where it is of another form. */
function named(field, words, names, first) {
  const said = field.split(",").map((one) => {
    const ends = one.split("-").map((end) => words[number(end, names, first) - first]);
    if (ends.length > 2 || ends.includes(undefined)) return null;
    return ends.length === 2 ? `${ends[0]} to ${ends[1]}` : ends[0];
  });
  return said.includes(null) ? null : list(said);
}

/** The minutes and hours in words. */
function time(minute, hour) {
  const every = /^\*\/(\d+)$/.exec(minute);
  const hours = hour.split(",");
  if (minute === "*" && hour === "*") return "every minute";
  if (every && hour === "*") return every[1] === "1" ? "every minute" : `every ${every[1]} minutes`;
  const between = /^(\d+)-(\d+)$/.exec(hour);
  if (every && between) return `every ${every[1]} minutes from ${two(between[1])}:00 to ${two(between[2])}:59`;
  if (!/^\d+(,\d+)*$/.test(minute)) return null;
  const minutes = minute.split(",");
  if (hour === "*") return minute === "0" ? "every hour" : `${list(minutes)} ${minute === "1" ? "minute" : "minutes"} past every hour`;
  const step = /^\*\/(\d+)$/.exec(hour);
  if (step && minutes.length === 1) {
    const past = minute === "0" ? "" : `, ${minute} minutes past`;
    return `every ${step[1]} hours${past}`;
  }
  if (between && minutes.length === 1)
    return `every hour from ${two(between[1])}:${two(minute)} to ${two(between[2])}:${two(minute)}`;
  if (hours.every((one) => /^\d+$/.test(one)) && hours.length * minutes.length <= 6)
    return `at ${list(hours.flatMap((one) => minutes.map((m) => `${two(one)}:${two(m)}`)))}`;
  return null;
}

/** The days in words; "" for every day, null where they cannot be said. */
function days(day, month, weekday) {
  const said = [];
  if (weekday !== "*") {
    const name = named(weekday, DAYS, SHORT.days, 0);
    if (name === null) return null;
    said.push(name.includes(" to ") || name.includes(",") || name.includes(" and ") ? name : `every ${name}`);
  }
  if (day !== "*") {
    const step = /^\*\/(\d+)$/.exec(day);
    if (day === "L") said.push("on the last day of the month");
    else if (step) said.push(`every ${step[1]} days`);
    else if (/^\d+(,\d+)*$/.test(day)) said.push(`on the ${list(day.split(",").map((one) => ordinal(Number(one))))}`);
    else return null;
  }
  if (month !== "*") {
    const name = named(month, MONTHS, SHORT.months, 1);
    if (name === null) return null;
    said.push(day === "*" ? `in ${name}` : `of ${name}`);
  }
  // Where both are given, cron runs on either of them.
  return said.join(weekday !== "*" && day !== "*" ? ", and " : " ");
}

/** The line in words, or null. */
export function cronWords(line) {
  const fields = line.trim().split(/\s+/);
  if (fields.length !== 5) return null;
  const [minute, hour, day, month, weekday] = fields;
  const at = time(minute, hour);
  const on = days(day, month, weekday);
  if (at === null || on === null) return null;
  if (on) return `${at}, ${on}`;
  return at.startsWith("at ") ? `${at} every day` : at;
}
