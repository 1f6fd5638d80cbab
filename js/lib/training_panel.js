// The panel in the node: how far, the chart with its legend, figures, the newest picture.

import { element } from "./elements.js";
import { loadStyle, onThemeChange } from "./page.js";
import { clock, digits, lastPhase, nameOf } from "./training_course.js";
import { TrainingPlot } from "./training_plot.js";

const FIGURES = {
  adapter_norm: ["Adapter norm", "Norm of what the adapter adds to the model's weights."],
  dc_accuracy: ["DC accuracy", "How often the diffusion classifier names the new concept for its own images."],
  dc_entropy: ["DC entropy", "Entropy of the diffusion classifier's scores, in nats: 0 is sure."],
  validation_loss: ["Validation loss", "Denoising error on fixed draws."],
};
const HEADINGS = {
  finished: "Trained",
  found: "Already trained",
  cached: "Already trained",
  interrupted: "Stopped",
  failed: "Failed",
};
const DONE = ["finished", "found", "cached"];
const CURVES = { loss: "Loss", smoothed: "Smoothed", penalty: "Penalty" };
const MILLISECONDS_BETWEEN_WORDS = 5000; // for a screen reader
const [LOW, HIGH] = [250, 320]; // least heights, without a picture and with one

const make = (tag, className, properties, ...children) => element(tag, { className, ...properties }, ...children);

/** A panel; `onHeight` is told when it needs more or less room, `pictureAddress` gives where a course's picture is. */
export class TrainingPanel {
  constructor({ onHeight, pictureAddress }) {
    const styles = ["vendor/uplot/uPlot.min.css", "training_chart.css"].map(loadStyle);
    this.onHeight = onHeight;
    this.pictureAddress = pictureAddress;
    this.course = null;
    this.spoken = { time: 0, state: "" };
    this.build();
    this.plot = new TrainingPlot(this.chart, (index) => this.plot && this.showLegend(index));
    this.endTheme = onThemeChange(() => this.plot.recolor());
    Promise.all(styles).then(() => this.plot.recolor()); // it may have been drawn before there were colors
    this.show(null);
  }

  get minHeight() {
    return this.picture.hidden ? LOW : HIGH;
  }

  build() {
    const part = (name, ...rest) => make("div", `continual-lora-training-${name}`, ...rest);
    this.phase = make("span", "continual-lora-training-phase");
    this.speed = make("span", "continual-lora-training-speed");
    this.bar = make("progress", "continual-lora-training-bar", { "aria-label": "Steps of this phase" });
    this.message = part("message");
    this.chart = part("chart", { tabIndex: 0, role: "group", "aria-roledescription": "line chart" });
    this.chart.addEventListener("keydown", (event) => this.onKey(event));
    this.chart.addEventListener("blur", () => this.plot.leave());
    this.values = {};
    this.legend = part("legend");
    for (const [name, label] of Object.entries(CURVES)) {
      const value = make("b", "");
      const swatch = make("i", `continual-lora-training-swatch ${name}`, { ariaHidden: "true" });
      this.values[name] = make("span", "", {}, swatch, `${label} `, value);
      this.values[name].number = value;
      this.legend.append(this.values[name]);
    }
    this.at = make("span", "continual-lora-training-at");
    this.figures = make("dl", "continual-lora-training-figures");
    this.image = make("img", "");
    this.caption = make("span", "");
    this.picture = make("a", "continual-lora-training-picture", { target: "_blank" }, this.image, this.caption);
    this.words = make("p", "continual-lora-training-words", { ariaLive: "polite" });
    const head = part("head", {}, this.phase, this.speed, this.at);
    const foot = part("foot", {}, this.figures, this.picture);
    this.empty = part("empty", { textContent: "Loss and penalty appear here while it trains." });
    this.chart.append(this.empty);
    this.element = make(
      "div",
      "continual-lora-training",
      { role: "group", ariaLabel: "Course of the training" },
      ...[head, this.bar, this.message, this.chart, this.legend, foot, this.words],
    );
  }

  /** Show a course; null is none. */
  show(course) {
    this.course = course;
    this.showHead(course);
    this.plot.show(course);
    this.empty.hidden = this.plot.columns.table[0].length > 0;
    this.showLegend(this.plot.pointed);
    this.showFigures(course?.figures ?? {});
    this.showPicture(course);
    this.speak(course);
  }

  showHead(course) {
    const phase = lastPhase(course);
    this.element.dataset.state = course?.state ?? "none";
    this.bar.max = phase?.total ?? 1;
    this.bar.value = phase?.step ?? 0;
    this.phase.textContent = course ? this.heading(course, phase) : "Not trained yet";
    const parts = [];
    if (course?.speed) parts.push(`${digits(course.speed)} steps/s`);
    if (course?.seconds_left) parts.push(`${clock(course.seconds_left)} left`);
    this.speed.textContent = parts.join(" · ");
    this.speed.title = parts.length ? "Left of this phase" : "";
    this.message.textContent = this.message.title = course ? messageOf(course) : "";
    this.message.hidden = !this.message.textContent;
  }

  heading(course, phase) {
    const name = HEADINGS[course.state];
    const concept = course.token ? ` <${course.token}>` : "";
    if (DONE.includes(course.state)) return `${name}${concept}`;
    if (!phase) return name ?? "Preparing";
    const steps = `step ${phase.step} of ${phase.total}`;
    return name ? `${name}${concept}, ${nameOf(phase).toLowerCase()}, ${steps}` : `${nameOf(phase)}${concept}, ${steps}`;
  }

  /** The values at a point of the chart, by default at the newest. */
  showLegend(index) {
    const [x, ...curves] = this.plot.columns.table;
    Object.keys(CURVES).forEach((name, number) => {
      const curve = curves[number];
      const value = index === null ? curve.findLast((one) => one !== null) : curve[index];
      this.values[name].number.textContent = digits(value);
    });
    this.values.penalty.hidden = !this.plot.held;
    this.legend.hidden = x.length === 0;
    const phase = index === null || x.length === 0 ? null : this.plot.phaseAt(x[index]);
    this.at.textContent = phase ? `${phase.name} ${Math.floor(x[index] - phase.offset)}` : "";
    this.speed.hidden = phase !== null;
  }

  showFigures(figures) {
    const shown = Object.entries(FIGURES).filter(([name]) => figures[name] !== undefined);
    this.figures.replaceChildren(
      ...shown.map(([name, [label, title]]) => {
        const value = make("dd", "", { textContent: digits(figures[name]) });
        return make("div", "", { title }, make("dt", "", { textContent: label }), value);
      }),
    );
  }

  showPicture(course) {
    const hidden = this.picture.hidden;
    this.picture.hidden = !course?.picture;
    if (course?.picture) {
      const address = this.pictureAddress(course);
      if (this.image.src !== address) this.image.src = this.picture.href = address;
      this.caption.textContent = `Step ${course.picture}`;
      this.image.alt = `Sample after step ${course.picture}, opens in a new tab`;
    }
    if (hidden !== this.picture.hidden) this.onHeight();
  }

  /** The course in words, for a screen reader: now and then, and when its state changes. */
  speak(course) {
    const phase = lastPhase(course);
    if (!course || !phase) return;
    const now = performance.now();
    const state = `${course.state} ${phase.name}`;
    if (state === this.spoken.state && now - this.spoken.time < MILLISECONDS_BETWEEN_WORDS) return;
    this.spoken = { time: now, state };
    const words = [this.phase.textContent];
    if (phase.loss.length) words.push(`loss ${this.values.smoothed.number.textContent}`);
    if (this.plot.held) words.push(`penalty ${this.values.penalty.number.textContent}`);
    if (this.speed.textContent) words.push(this.speed.textContent);
    if (this.message.textContent) words.push(this.message.textContent);
    this.words.textContent = words.join(", ");
    this.chart.ariaLabel = `Loss and penalty. ${words.join(", ")}. Arrow keys go along the curves.`;
  }

  onKey(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation(); // else the canvas moves the node
    this.plot.moveCursor(by);
    this.words.textContent = `${this.at.textContent}: ${this.legend.innerText.replaceAll("\n", " ")}`;
  }

  remove() {
    this.endTheme();
    this.plot.remove();
  }
}

function messageOf(course) {
  if (course.state === "interrupted") return "Queue the same graph again to go on from here.";
  if (course.state === "found") return "Found on disk: the same images and settings are not trained again.";
  if (course.state === "cached") return "ComfyUI still has the result of the same inputs: it did not run this node again.";
  return course.state === "failed" ? course.message : "";
}
