// The concept-sequence panel on Load Concept Sequence and Evaluate Concept Sequence.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { loadStyle } from "./lib/page.js";
import { sequenceServer } from "./lib/sequence_server.js";
import { SequenceView } from "./lib/sequence_view.js";

const WIDTH = 400;
// Where the node keeps what it evaluated last, in the workflow; the numbers and the pictures stay on the server.
const EVALUATED = "continual_lora_evaluated";
const HINT_LOAD = "Concepts that were taught appear here. There is no sequence in output/continual_lora yet.";
const HINT_EVALUATE = "Run this node: the concepts, and how well each is still drawn after every task, appear here.";

const views = new Set();

/** Call `then` with the same arguments after a method of this one object. */
function after(owner, name, then) {
  const before = owner[name];
  owner[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}

/** A view as the last widget of a node; it takes the height that the other widgets leave. */
function addView(node, hint) {
  const view = new SequenceView(sequenceServer(api), hint);
  const options = { serialize: false, getMinHeight: () => view.leastHeight };
  const widget = node.addDOMWidget("sequence_panel", "continual_lora_sequence", view.element, options);
  widget.serialize = false;
  view.onHeight = () => {
    const [width, height] = node.computeSize();
    if (node.size[0] < width || node.size[1] < height) {
      node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    }
    node.setDirtyCanvas?.(true, true);
  };
  node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], node.computeSize()[1])]);
  views.add(view);
  after(node, "onRemoved", () => {
    views.delete(view);
    view.close();
  });
  return view;
}

/** Load Concept Sequence: what its drop-down names, before anything is run. */
function followChoice(node) {
  const view = addView(node, HINT_LOAD);
  const widget = node.widgets.find(({ name }) => name === "sequence_name");
  const show = () => view.show(isChoice(widget.value) ? String(widget.value) : "");
  after(widget, "callback", show);
  after(node, "onConfigure", show);
  queueMicrotask(show); // a node of a workflow gets its value after this
}

/** Not "(none on disk yet)": no sequence has such a name unless someone insists. */
function isChoice(value) {
  return Boolean(value) && !String(value).startsWith("(none");
}

/** Evaluate Concept Sequence: what it evaluated last, in this session or before the workflow was saved. */
function followRuns(node) {
  const view = addView(node, HINT_EVALUATE);
  const show = () => {
    const { choice = "", evaluation = "" } = node.properties?.[EVALUATED] ?? {};
    view.show(choice, evaluation);
  };
  after(node, "onConfigure", show);
  after(node, "onExecuted", (output) => {
    if (!output?.evaluation?.length) return;
    node.properties[EVALUATED] = { choice: output.sequence[0], evaluation: output.evaluation[0] };
    show();
  });
  queueMicrotask(show);
}

const FOLLOW = { ContinualLoRA_LoadSequence: followChoice, ContinualLoRA_EvaluateSequence: followRuns };

function refreshAll() {
  for (const view of views) view.refresh();
}

app.registerExtension({
  name: "continual_lora.sequence_panel",

  setup() {
    loadStyle("sequence_panel.css");
    // A training or an evaluation may have changed what is shown.
    api.addEventListener("execution_success", refreshAll);
  },

  nodeCreated(node) {
    FOLLOW[node.comfyClass]?.(node);
  },

  refreshComboInNodes: refreshAll,
});
