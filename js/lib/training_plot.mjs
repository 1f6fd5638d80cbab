// The chart: loss, raw and smoothed, on the left axis, penalty on the right one.

import uPlot from "../vendor/uplot/uPlot.min.mjs";
import { cssVariable } from "./page.mjs";
import { columns } from "./training_course.mjs";

const PIXELS_PER_STEP_LABEL = 50;
const PIXELS_PER_VALUE_LABEL = 22;

/** A chart in `place`; `onCursor` is told the index of the point under the cursor, or null. */
export class TrainingPlot {
  constructor(place, onCursor) {
    this.place = place;
    this.onCursor = onCursor;
    this.columns = columns(null);
    this.plot = null;
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(place);
  }

  /** Show a course, of which a phase or a penalty may be new. */
  show(course) {
    this.columns = columns(course);
    const held = this.columns.table[3].some((penalty) => penalty > 0);
    if (!this.plot || held !== this.held) this.rebuild(held);
    else this.plot.setData(this.columns.table);
  }

  /** Draw anew, where the colors have changed or an axis comes or goes. */
  rebuild(held = this.held) {
    this.held = held;
    this.plot?.destroy();
    const { clientWidth: width, clientHeight: height } = this.place;
    if (!width || !height) {
      this.plot = null; // until there is room
      return;
    }
    this.plot = new uPlot(this.options(width, height), this.columns.table, this.place);
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.place;
    if (!this.plot) this.rebuild();
    else if (width && height) this.plot.setSize({ width, height });
  }

  /** Move the cursor by some points; from the newest one where there is none. */
  moveCursor(by) {
    const last = this.columns.table[0].length - 1;
    if (!this.plot || last < 0) return;
    let index = Math.min(Math.max((this.plot.cursor.idx ?? last + 1) + by, 0), last);
    if (this.columns.table[1][index] === null) index += Math.sign(by); // a gap
    const left = this.plot.valToPos(this.columns.table[0][index], "x");
    this.plot.setCursor({ left: left * zoomOf(this.plot), top: 0 });
  }

  /** The index of the point under the cursor, or null. */
  get pointed() {
    return this.plot && this.plot.cursor.left >= 0 ? (this.plot.cursor.idx ?? null) : null;
  }

  /** Take the cursor away. */
  leave() {
    this.plot?.setCursor({ left: -10, top: -10 });
  }

  /** The phase that a place on the axis lies in. */
  phaseAt(x) {
    return this.columns.starts.findLast((phase) => x > phase.offset) ?? this.columns.starts[0];
  }

  remove() {
    this.observer.disconnect();
    this.plot?.destroy();
    this.plot = null;
  }

  options(width, height) {
    const color = (name) => cssVariable(this.place, name);
    const [text, line, loss, penalty] = ["text", "line", "loss", "penalty"].map((name) => color(`--training-${name}`));
    const font = `10px ${getComputedStyle(this.place).fontFamily}`;
    const axis = { stroke: text, font, gap: 3, ticks: { show: false }, grid: { stroke: line, width: 1 } };
    const values = { ...axis, space: PIXELS_PER_VALUE_LABEL, size: sizeOfAxis, values: (_, splits) => splits.map(short) };
    const fromZero = (_, low, high) => [0, high > 0 ? high * 1.05 : 1];
    const curve = { points: { show: false }, spanGaps: false };
    return {
      width,
      height,
      padding: [6, this.held ? 0 : 8, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 6 }, move: unzoomed },
      scales: {
        x: { time: false, range: () => [0, Math.max(this.columns.end, 1)] },
        loss: { range: fromZero },
        penalty: { range: fromZero },
      },
      axes: [
        {
          ...axis,
          space: PIXELS_PER_STEP_LABEL,
          size: 20,
          splits: (plot, index, low, high, increment) => this.stepsToLabel(Math.max(1, Math.round(increment))),
          values: (_, steps) => steps.map((x) => x - (this.phaseAt(x)?.offset ?? 0)),
        },
        { ...values, scale: "loss" },
        { ...values, scale: "penalty", side: 1, show: Boolean(this.held), stroke: penalty, grid: { show: false } },
      ],
      series: [
        {},
        { ...curve, label: "loss", scale: "loss", stroke: loss, width: 1, alpha: 0.35 },
        { ...curve, label: "smoothed", scale: "loss", stroke: loss, width: 2 },
        { ...curve, label: "penalty", scale: "penalty", stroke: penalty, width: 1.5, dash: [5, 3], show: Boolean(this.held) },
      ],
      hooks: {
        drawClear: [(plot) => this.drawPhases(plot, line, text, font)],
        setCursor: [() => this.onCursor(this.pointed)],
      },
    };
  }

  /** Every so many steps of each phase; a label says the step within its phase. */
  stepsToLabel(increment) {
    const labeled = (phase) =>
      Array.from({ length: Math.floor(phase.total / increment) }, (_, index) => phase.offset + (index + 1) * increment);
    return [0, ...this.columns.starts.flatMap(labeled)];
  }

  /** A line and a name where a further phase begins. */
  drawPhases(plot, line, text, font) {
    const { ctx, bbox } = plot;
    const ratio = uPlot.pxRatio;
    ctx.save();
    ctx.font = font.replace("10px", `${10 * ratio}px`);
    ctx.textAlign = "left";
    ctx.textBaseline = "top";
    for (const phase of this.columns.starts.slice(1)) {
      const x = Math.round(plot.valToPos(phase.offset, "x", true));
      const right = plot.valToPos(phase.offset + phase.total, "x", true);
      ctx.strokeStyle = ctx.fillStyle = text;
      ctx.lineWidth = ratio;
      ctx.globalAlpha = 0.6;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.globalAlpha = 1;
      const room = right - x - 6 * ratio;
      const words = [phase.name, phase.name.split(" ")[0]].find((name) => ctx.measureText(name).width <= room);
      if (words) ctx.fillText(words, x + 4 * ratio, bbox.top + 2 * ratio);
    }
    ctx.restore();
  }
}

/** How many of the screen's pixels one of the chart's is: the canvas is zoomed. */
function zoomOf(plot) {
  return plot.over.getBoundingClientRect().width / plot.over.offsetWidth || 1;
}

function unzoomed(plot, x, y) {
  return [x / zoomOf(plot), y / zoomOf(plot)];
}

/** As wide as the longest label. */
function sizeOfAxis(plot, labels) {
  const longest = Math.max(0, ...(labels ?? []).map((label) => String(label).length));
  return 10 + 6 * longest;
}

function short(value) {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}
