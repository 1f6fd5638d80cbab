// The course of a training as the server tells it: see trainer/training/course.py.

export const PHASES = {
  prior: "Drawing prior images",
  train: "Training",
  consolidate: "Consolidation",
  fisher: "Fisher information",
};
const SMOOTHING = 0.9; // share of the past in the smoothed loss, a point

/** The course after news; null where something in between was missed. */
export function merged(course, news) {
  const known = course?.run === news.run ? course.phases : [];
  const phases = news.phases.map((phase, index) => {
    const before = { loss: known[index]?.loss ?? [], penalty: known[index]?.penalty ?? [] };
    if (before.loss.length < phase.from) return null;
    const curve = (name) => [...before[name].slice(0, phase.from), ...phase[name]];
    return { ...phase, from: 0, loss: curve("loss"), penalty: curve("penalty") };
  });
  return phases.includes(null) ? null : { ...news, phases };
}

/** The phase that is on, or was last; undefined before the first. */
export function lastPhase(course) {
  return course?.phases.at(-1);
}

/** The phase in words. */
export function nameOf(phase) {
  return PHASES[phase.name] ?? phase.name[0].toUpperCase() + phase.name.slice(1);
}

/** An exponential mean of what there was so far, without a start at zero; gaps are left out. */
export function smoothed(values) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = SMOOTHING * sum + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return sum / weight;
  });
}

/**
 * All phases one after another, as columns [x, loss, smoothed loss, penalty], and where each phase begins.
 * Between two phases is a gap, and a curve has gaps where there was nothing to measure.
 */
export function columns(course) {
  const table = [[], [], [], []];
  const starts = [];
  let offset = 0;
  for (const phase of course?.phases ?? []) {
    if (!phase.measured) continue;
    starts.push({ offset, name: nameOf(phase), total: phase.total });
    const steps = phase.loss.map((_, index) => offset + Math.min((index + 1) * phase.stride, phase.total));
    if (table[0].length) table.forEach((column, index) => column.push(index ? null : offset + 0.5));
    const held = phase.penalty.some((value) => value > 0); // else there is none, which is not one of 0
    [steps, phase.loss, smoothed(phase.loss), phase.penalty.map((value) => (held ? value : null))].forEach((part, index) => {
      for (const value of part) table[index].push(value);
    });
    offset += phase.total;
  }
  return { table, starts, end: offset };
}

/** Three digits. */
export function digits(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return size >= 1000 ? String(Math.round(value)) : value.toPrecision(3);
}

/** Seconds as 1:02:03 or 2:03. */
export function clock(seconds) {
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}
