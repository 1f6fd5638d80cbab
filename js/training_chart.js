// Train Continual LoRA shows its course: pushed by the server while it trains, asked for once when a page opens.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { merged } from "./lib/training_course.js";
import { TrainingPanel } from "./lib/training_panel.js";

const NODE = "ContinualLoRA_Train";
const EVENT = "continual_lora.training";
const WIDGET = "continual_lora_training";
const ROUTE = "/continual_lora/training";

const panels = new WeakMap(); // node -> panel
let courses = new Map(); // id of a node, "12:5" for node 5 of subgraph 12 -> course; of the open workflow
let opened = "";

const graph = () => app.rootGraph ?? app.graph;
const query = (values) => new URLSearchParams(values).toString();

function nodeOf(id) {
  let inside = graph();
  let node = null;
  for (const part of id.split(":")) {
    node = inside?.getNodeById(Number(part));
    inside = node?.subgraph;
  }
  return node;
}

function showAll() {
  for (const [id, course] of courses) panels.get(nodeOf(id))?.show(course);
}

/** Ask the server for every course of the open workflow. */
async function load() {
  const workflow = graph().id;
  if (workflow !== opened) {
    opened = workflow;
    courses = new Map();
  }
  showAll();
  const asked = api.fetchApi(`${ROUTE}?${query({ workflow })}`);
  const answer = await asked.catch(() => ({ ok: false })); // without a server, of which the page tells, there are none
  if (!answer.ok || workflow !== graph().id) return;
  const { trainings } = await answer.json();
  for (const { node, ...course } of trainings) courses.set(node, { ...course, node });
  showAll();
}

function onNews({ detail }) {
  if (detail.workflow !== graph().id) return;
  const course = merged(courses.get(detail.node), detail);
  if (course === null) {
    load();
    return;
  }
  courses.set(detail.node, course);
  panels.get(nodeOf(detail.node))?.show(course);
}

/** A node that ComfyUI does not run, since it has the result of the same inputs, tells no course. */
function onCached({ detail }) {
  for (const id of detail.nodes) {
    const panel = panels.get(nodeOf(id));
    if (panel && !courses.has(id)) panel.show({ state: "cached", phases: [], figures: {} });
  }
}

/** Let the node be as high as its widgets need. */
function grow(node) {
  const [width, height] = node.size;
  const least = node.computeSize()[1];
  if (height < least) node.setSize([width, least]);
  node.graph?.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "continual_lora.training_chart",

  setup() {
    api.addEventListener(EVENT, onNews);
    api.addEventListener("execution_cached", onCached);
    api.addEventListener("reconnected", load);
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const panel = new TrainingPanel({
      onHeight: () => grow(node),
      pictureAddress: ({ node: id, run, picture }) =>
        new URL(api.apiURL(`${ROUTE}/picture?${query({ workflow: graph().id, node: id, run, picture })}`), location).href,
    });
    panels.set(node, panel);
    const widget = node.addDOMWidget(WIDGET, WIDGET, panel.element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => panel.minHeight,
    });
    widget.serialize = false; // the course is the server's
    const { onRemove } = widget;
    widget.onRemove = function () {
      onRemove?.call(this);
      panel.remove();
    };
  },

  afterConfigureGraph: load,
});
